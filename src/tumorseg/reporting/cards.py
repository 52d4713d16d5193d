"""The model card (Mitchell et al. 2019) and the data card (Gebru et al. 2021), from figures alone.

https://arxiv.org/abs/1810.03993, https://arxiv.org/abs/1803.09010
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tumorseg.core.files import atomic_path
from tumorseg.data.audit import PERCENTILES
from tumorseg.data.coco import ANNOTATIONS, SPLITS, read_json
from tumorseg.data.leakage import neighbours_elsewhere
from tumorseg.data.shapes import RECTANGLE_FILL
from tumorseg.data.splits import EXCLUDED
from tumorseg.evaluation.results import TITLES, verdicts
from tumorseg.reporting.caveats import caveats, limits
from tumorseg.reporting.inputs import ReportInputs, networks_of
from tumorseg.reporting.wording import fill


def write_cards(inputs: ReportInputs, model: Path, data: Path) -> None:
    """Writes both cards.

    Args:
        inputs: A finished comparison.
        model: Receives the model card, Markdown.
        data: Receives the data card, Markdown.
    """
    for path, template, values in (
        (model, "model_card.md", model_values(inputs)),
        (data, "data_card.md", data_values(inputs)),
    ):
        text = fill(template, values)
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def model_values(inputs: ReportInputs) -> dict[str, Any]:
    """Everything that model_card.md names."""
    figures, winner = inputs.figures, inputs.figures["winner"]
    (chosen,) = (
        training.run
        for training in inputs.trainings
        if (training.run["network"], training.run["seed"]) == (winner, figures["winner_seed"])
    )
    return {
        "figures": figures,
        "titles": TITLES,
        "networks": networks_of(inputs),
        "registered": figures["runs"][f"{winner}-{figures['winner_seed']}"],
        "threshold": inputs.params["evaluate"]["threshold"],
        "run": chosen,
        "runs": [training.run for training in inputs.trainings],
        "section": inputs.params["train"],
        "augment": inputs.params["augment"],
        "lineage": inputs.lineage,
        "sides": inputs.split["slices"],
        "verdicts": verdicts(figures),
        "strata": inputs.strata[inputs.strata["method"] == winner].to_dict("records"),
        "limits": caveats(inputs) + limits(inputs),
        "environment": inputs.environment,
    }


def data_values(inputs: ReportInputs) -> dict[str, Any]:
    """Everything that data_card.md names."""
    usable = inputs.usable.reset_index(drop=True)
    usable = usable.assign(neighbour_in_train=neighbours_elsewhere(usable, ("train",)))
    sizes = usable["width"].astype(str) + "×" + usable["height"].astype(str)
    return {
        "lineage": inputs.lineage,
        "split": inputs.split,
        "audit": inputs.audit,
        "failed": [finding for finding in inputs.audit["findings"] if not finding["success"]],
        "passed": sum(finding["success"] for finding in inputs.audit["findings"]),
        "params": inputs.params,
        "source": recorded_source(inputs.data),
        "listed": inputs.audit["images"],
        "usable": len(usable),
        "unnamed": int(usable["group"].isna().sum()),
        "patients": usable["group"].nunique(),
        "numbered": int(usable["slice_number"].notna().sum()),
        "spacings": {str(mm): int(n) for mm, n in usable["spacing_mm"].value_counts().items()},
        "sizes": {str(size): int(n) for size, n in sizes.value_counts().head(5).items()},
        "other_sizes": max(sizes.nunique() - 5, 0),
        "annotations": {
            str(number): int(images)
            for number, images in usable["annotations"].value_counts().sort_index().items()
        },
        "percentiles": PERCENTILES,
        "sides": [
            side(usable[usable["split"] == name], name)
            for name in (*SPLITS, EXCLUDED)
            if (usable["split"] == name).any()
        ],
        "categories": sorted(set(usable["categories"])),
        "rectangles": int((usable["box_fill"] >= RECTANGLE_FILL).sum()),
        "labelled": int(usable["box_fill"].notna().sum()),
    }


def side(rows: pd.DataFrame, name: str) -> dict[str, Any]:
    """The counts of one side of the split.

    Args:
        rows: Of the manifest, with `neighbour_in_train`.
        name: train, valid, test or aside.
    """
    tumour = rows.loc[rows["tumour_fraction"] > 0, "tumour_fraction"]
    sizes = np.percentile(tumour, PERCENTILES) if len(tumour) else [None] * len(PERCENTILES)
    return {
        "name": name,
        "slices": len(rows),
        "groups": int(rows["split_group"].nunique()),
        "without_tumour": int((rows["tumour_fraction"] == 0).sum()),
        "categories": {str(k): int(v) for k, v in rows["categories"].value_counts().items()},
        "sizes": dict(zip(PERCENTILES, sizes, strict=True)),
        "neighbour_in_train": int(rows["neighbour_in_train"].sum()),
        "near_duplicate_elsewhere": int(rows["near_duplicate_elsewhere"].sum()),
        "duplicate_elsewhere": int(rows["duplicate_elsewhere"].sum()),
    }


def recorded_source(data: Path) -> dict[str, list[str]]:
    """What the annotation files say of where the data come from.

    Args:
        data: Holds a folder a split.

    Returns:
        Field of COCO's `info` and `licenses` → what the splits say, each value once.
    """
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        document = read_json(data / split / ANNOTATIONS)
        parts = {"info": [document.get("info")], "licence": document.get("licenses")}
        for part, entries in parts.items():
            for entry in entries if isinstance(entries, list) else []:
                for key, value in entry.items() if isinstance(entry, dict) else []:
                    known = found.setdefault(f"{part} {key}", [])
                    if key != "id" and str(value).strip() and str(value) not in known:
                        known.append(str(value))
    return {key: values for key, values in found.items() if values}
