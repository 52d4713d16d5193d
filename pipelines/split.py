"""split: manifest → the same with every slice's split: the data set's, by patient or guessed."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines._flow import command, stage, step
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.core.params import SplitParams, load_params
from tumorseg.data.audit import baseline_figures
from tumorseg.data.coco import SPLITS
from tumorseg.data.leakage import PAIRS, mark_leaks
from tumorseg.data.manifest import (
    MANIFEST,
    SPLIT_MANIFEST,
    THUMBNAILS,
    load_manifest,
    save_manifest,
)
from tumorseg.data.splits import (
    EXCLUDED,
    count_patients,
    grouped,
    official,
    patients_known,
    resolve,
)


@stage(name="split")
def split() -> None:
    """Decides which slices are for training and for testing, and reports what still ties them."""
    params = load_params(SplitParams)
    table, pairs = load_manifest(MANIFEST), pd.read_parquet(PAIRS)
    blocks = (params.shortest_block, params.longest_block)
    method = resolve(params.method, table)
    if method == "official":
        result = step(official)(table, pairs, *blocks)
    else:
        result = step(grouped)(table, pairs, *blocks, params.seed)
    empty = [name for name in SPLITS if name not in set(result["split"])]
    if empty:
        raise InputError(
            f"split: no slice would be in {' and '.join(empty)}: {result['split_group'].nunique()} "
            "groups do not divide; set split.method: official in params.yaml, or add data"
        )
    result = mark_leaks(result, pairs, SPLITS)
    write_json(Path("reports/split.json"), describe(result, method))
    save_manifest(result, SPLIT_MANIFEST)


def describe(table: pd.DataFrame, method: str) -> dict[str, object]:
    """The figures of reports/split.json, also printed."""
    used = table[table["split"] != EXCLUDED]
    counts = used["split"].value_counts()
    assignment = "\n".join(sorted(table["path"] + " " + table["split"]))
    divided = used.groupby("split_group")["split"].nunique() > 1
    known = patients_known(used)
    figures: dict[str, object] = {
        "method": method,
        "patients_known": known,
        "digest": hashlib.sha256(assignment.encode()).hexdigest(),
        "slices": {name: int(counts.get(name, 0)) for name in SPLITS},
        "shares": {name: round(float(counts.get(name, 0) / len(used)), 4) for name in SPLITS},
        "excluded": int((table["split"] == EXCLUDED).sum()),
        "groups": len(divided),
        "groups_divided": int(divided.sum()),
        "slices_with_neighbour_elsewhere": int(used["neighbour_elsewhere"].sum()),
        "slices_with_near_duplicate_elsewhere": int(used["near_duplicate_elsewhere"].sum()),
        "slices_with_duplicate_elsewhere": int(used["duplicate_elsewhere"].sum()),
        **(count_patients(used) if known else {}),
        "baselines": baseline_figures(used, np.load(THUMBNAILS, mmap_mode="r")),
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    return figures


if __name__ == "__main__":
    command(split)
