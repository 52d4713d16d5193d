"""evaluate: weights → masks → counts → table, for both networks and the baselines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from pipelines._flow import command, stage, step
from pipelines.train import TRAINED
from tumorseg.core.files import atomic_path, write_json
from tumorseg.core.params import NETWORKS, EvaluateParams, RegisterParams, TrainParams, load_params
from tumorseg.data.arrays import load_slices
from tumorseg.data.coco import SPLITS
from tumorseg.data.manifest import THUMBNAILS, load_manifest
from tumorseg.evaluation.results import TITLES, Run, reduce, split_optimism, verdicts
from tumorseg.evaluation.results import table as comparison_table
from tumorseg.evaluation.strata import strata
from tumorseg.registry.runs import latest_figures, lineage, recipe
from tumorseg.reporting import figures
from tumorseg.reporting.report import write_cards, write_report
from tumorseg.reporting.report_data import ReportData, Training, seed_means
from tumorseg.training.predict_split import compare, load_network

REPORTS = Path("reports")
MASKS = Path("artifacts/evaluate/masks.parquet")


@stage(name="evaluate")
def evaluate() -> None:
    """Compares the networks with each other and with the baselines; draws what they predict."""
    params, training = load_params(EvaluateParams), load_params(TrainParams)
    runs = [(name, seed) for name in NETWORKS for seed in training.seeds]
    networks = {
        (name, seed): load_network(
            name, training, TRAINED / f"{name}-{seed}" / "weights.safetensors", params
        )
        for name, seed in runs
    }
    manifest, split = load_manifest(), json.loads((REPORTS / "split.json").read_text())
    slices = {name: load_slices(name) for name in SPLITS}
    thumbnails = np.load(THUMBNAILS, mmap_mode="r")
    comparison = step(compare)(networks, slices, manifest, thumbnails, params)
    result = step(reduce)(comparison, split, params)
    scored = comparison.scored
    tables = {name: found.table() for name, found in comparison.reliability.items()}
    calibration = pd.concat(tables, names=["method"]).reset_index(0)
    test = scored[scored["split"] == "test"]
    parts = step(strata)(test, params.bootstrap_samples, params.seed)
    write_json(REPORTS / "metrics.json", result)
    for path, table in {
        REPORTS / "per_slice.csv": scored.drop(columns=["mask_rle", "truth_rle"]),
        REPORTS / "strata.csv": parts,
        REPORTS / "calibration.csv": calibration,
    }.items():
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)
    with atomic_path(MASKS) as temporary:
        scored.to_parquet(temporary, index=False)
    folders = [TRAINED / f"{name}-{seed}" for name, seed in runs]
    histories = [pd.read_csv(folder / "history.csv") for folder in folders]
    step(draw)(scored, runs, histories)
    summaries = [json.loads((folder / "run.json").read_text()) for folder in folders]
    inputs = ReportData(
        figures=result,
        slices=scored,
        strata=parts,
        calibration=calibration,
        trainings=list(map(Training, summaries, histories)),
        manifest=manifest,
        audit=json.loads((REPORTS / "audit.json").read_text()),
        split=split,
        params=yaml.safe_load(Path("params.yaml").read_text()),
        lineage=lineage(),
        data=Path("data"),
        gated=networks["attention_unet", result["winner_seed"]].network,
        gated_seed=result["winner_seed"],
    )
    step(report)(inputs)
    print("\n" + comparison_table(result))
    print("\n".join(["", *verdicts(result)]))
    report_split_optimism(result)


def report(inputs: ReportData) -> None:
    """Writes the report and the cards of model and data."""
    write_report(inputs, REPORTS / "report.html")
    write_cards(inputs, REPORTS / "model_card.md", REPORTS / "data_card.md")


def report_split_optimism(figures: dict[str, Any]) -> None:
    """Compares with the last run on the other split, if MLflow knows one of the same recipe."""
    others = {"official": "grouped", "grouped": "official"}
    tags = {"split": others[figures["split"]["method"]], "data_md5": lineage()["data_md5"]}
    tags |= {"recipe": recipe()}
    gaps = split_optimism(
        figures, step(latest_figures, retries=2)(load_params(RegisterParams).experiment, tags)
    )
    write_json(REPORTS / "split_optimism.json", gaps)
    for method, pair in gaps.items():
        print(
            f"{TITLES[method]}: mean Dice {pair['official']:.3f} on the official split, "
            f"{pair['grouped']:.3f} on the grouped one: split optimism {pair['gap']:+.3f}"
        )


def draw(scored: pd.DataFrame, runs: list[Run], histories: list[pd.DataFrame]) -> None:
    """Draws the training curves, the comparison chart and the gallery of predictions.

    Args:
        scored: A row a method, seed, split and slice.
        runs: The network and seed of each training.
        histories: Of each training, a row an epoch.
    """
    epochs = pd.concat(
        history.assign(network=name, seed=seed)
        for (name, seed), history in zip(runs, histories, strict=True)
    )
    means = [
        seed_means(history).drop(columns="seed").add_prefix(f"{name}_")
        for name, history in epochs.groupby("network")
    ]
    with atomic_path(REPORTS / "history.csv") as temporary:
        pd.concat(means, axis=1).to_csv(temporary)
    figures.png(figures.training_curves(epochs), REPORTS / "curves.png")
    figures.comparison_chart(scored[scored["split"] == "test"], REPORTS / "comparison.png")
    figures.prediction_gallery(scored, Path("data"), REPORTS / "predictions.png")


if __name__ == "__main__":
    command(evaluate)
