"""evaluate: weights → masks → counts → table, for both networks and the controls."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines._flow import main, stage, step
from pipelines.train import TRAINED
from tumorseg import figures
from tumorseg.arrays import load_slices
from tumorseg.coco import SPLITS
from tumorseg.evaluation import TITLES, compare, honesty_gap, load_network, reduce, table, verdicts
from tumorseg.files import atomic_path, write_json
from tumorseg.manifest import THUMBNAILS, load_manifest
from tumorseg.params import (
    NETWORKS,
    EvaluateParams,
    RegisterParams,
    TrainParams,
    load_params,
)
from tumorseg.tracking import latest_figures, lineage

REPORTS = Path("reports")
MASKS = Path("artifacts/evaluate/masks.parquet")


@stage(name="evaluate")
def evaluate() -> None:
    """Compares the networks with each other and with the controls; draws what they predict."""
    params, training = load_params(EvaluateParams), load_params(TrainParams)
    networks = {
        name: load_network(name, training, TRAINED / name / "weights.safetensors")
        for name in NETWORKS
    }
    slices = {split: load_slices(split) for split in SPLITS}
    thumbnails = np.load(THUMBNAILS, mmap_mode="r")
    comparison = step(compare)(networks, slices, load_manifest(), thumbnails, params)
    split = json.loads((REPORTS / "split.json").read_text())
    result = step(reduce)(comparison, split, params)
    write_json(REPORTS / "metrics.json", result)
    with atomic_path(MASKS) as temporary:
        comparison.to_parquet(temporary, index=False)
    with atomic_path(REPORTS / "per_slice.csv") as temporary:
        comparison.drop(columns=["mask_rle", "truth_rle"]).to_csv(temporary, index=False)
    step(draw)(comparison)
    print("\n" + table(result))
    print("\n".join(["", *verdicts(result)]))
    say_honesty_gap(result)


def say_honesty_gap(figures: dict[str, Any]) -> None:
    """Compares with the last run on the other split of the same data, if MLflow knows one."""
    others = {"official": "grouped", "grouped": "official"}
    tags = {"split": others[figures["split"]["method"]], "data_md5": lineage()["data_md5"]}
    gaps = honesty_gap(
        figures, step(latest_figures, retries=2)(load_params(RegisterParams).experiment, tags)
    )
    write_json(REPORTS / "honesty.json", gaps)
    for method, pair in gaps.items():
        print(
            f"{TITLES[method]}: mean Dice {pair['official']:.3f} on the official split, "
            f"{pair['grouped']:.3f} on the grouped one: honesty gap {pair['gap']:+.3f}"
        )


def draw(comparison: pd.DataFrame) -> None:
    """Draws the training curves, the comparison chart and the gallery of predictions."""
    histories = {name: pd.read_csv(TRAINED / name / "history.csv") for name in NETWORKS}
    figures.training_curves(histories, REPORTS / "curves.png")
    test = comparison[comparison["split"] == "test"]
    figures.comparison_chart(test, REPORTS / "comparison.png")
    figures.prediction_gallery(comparison, Path("data"), REPORTS / "predictions.png")


if __name__ == "__main__":
    main(evaluate)
