"""evaluate: weights → masks → counts → table, for both networks and the baselines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from pipelines._flow import command, stage, step
from pipelines._paths import CROSSVALIDATION, DATA, REPORTS, TRAINED
from tumorseg.core.files import atomic_path, write_json
from tumorseg.core.params import NETWORKS, EvaluateParams, RegisterParams, TrainParams, load_params
from tumorseg.data.arrays import load_slices
from tumorseg.data.coco import SPLITS
from tumorseg.data.manifest import THUMBNAILS, load_manifest
from tumorseg.evaluation.results import TITLES, reduce, split_optimism, summary
from tumorseg.evaluation.strata import strata
from tumorseg.registry.runs import latest_figures, lineage, recipe
from tumorseg.reporting import figures
from tumorseg.reporting.report import write_cards, write_report
from tumorseg.reporting.report_data import ReportData, seed_means
from tumorseg.training.predict_split import compare, load_network

MASKS = Path("artifacts/evaluate/masks.parquet")


@stage(name="evaluate")
def evaluate() -> None:
    """Compares the networks with each other and with the baselines; draws what they predict."""
    params, training = load_params(EvaluateParams), load_params(TrainParams)
    networks = {
        (name, seed): load_network(
            name, training, TRAINED / f"{name}-{seed}" / "weights.safetensors", params
        )
        for name in NETWORKS
        for seed in training.seeds
    }
    slices = {split: load_slices(split) for split in SPLITS}
    thumbnails = np.load(THUMBNAILS, mmap_mode="r")
    manifest = load_manifest()
    comparison = step(compare)(networks, slices, manifest, thumbnails, params)
    split = json.loads((REPORTS / "split.json").read_text())
    result = step(reduce)(comparison, split, params)
    write_json(REPORTS / "metrics.json", result)
    scored = comparison.scored
    test = scored[scored["split"] == "test"]
    reliability = {name: found.table() for name, found in comparison.reliability.items()}
    calibration = pd.concat(reliability, names=["method"]).reset_index(0)
    parts = step(strata)(test, params.bootstrap_samples, params.seed)
    for path, frame in {
        REPORTS / "per_slice.csv": scored.drop(columns=["mask_rle", "truth_rle"]),
        REPORTS / "strata.csv": parts,
        REPORTS / "calibration.csv": calibration,
    }.items():
        with atomic_path(path) as temporary:
            frame.to_csv(temporary, index=False)
    with atomic_path(MASKS) as temporary:
        scored.to_parquet(temporary, index=False)
    folders = [TRAINED / f"{name}-{seed}" for name, seed in networks]
    histories = pd.concat(
        pd.read_csv(folder / "history.csv").assign(network=name, seed=seed)
        for folder, (name, seed) in zip(folders, networks, strict=True)
    )
    step(draw)(scored, histories)
    gated = networks["attention_unet", result["winner_seed"]].network
    data = ReportData(
        figures=result,
        slices=scored,
        strata=parts,
        calibration=calibration,
        runs=[json.loads((folder / "run.json").read_text()) for folder in folders],
        histories=histories,
        manifest=manifest,
        audit=json.loads((REPORTS / "audit.json").read_text()),
        split=split,
        params=yaml.safe_load(Path("params.yaml").read_text()),
        lineage=lineage(),
        data=DATA,
        gated=gated,
        crossvalidation=crossvalidation(),
    )
    step(write_report)(data, REPORTS / "report.html")
    step(write_cards)(data, REPORTS / "model_card.md", REPORTS / "data_card.md")
    print("\n" + summary(result, parts))
    report_split_optimism(result, split)


def crossvalidation() -> dict[str, Any] | None:
    """The figures of the last cross-validation, if there was one of the same data and recipe."""
    if not CROSSVALIDATION.exists():
        return None
    figures: dict[str, Any] = json.loads(CROSSVALIDATION.read_text())
    same = (figures["data_md5"], figures["recipe"]) == (lineage()["data_md5"], recipe())
    return figures if same else None


def report_split_optimism(figures: dict[str, Any], split: dict[str, Any]) -> None:
    """Compares with the last run on the other split, if MLflow knows one of the same recipe.

    That is official, and by patient or, where these are not known, guessed.
    """
    against = split["method"]
    if against == "official":
        against = "patient" if split["patients_known"] else "guessed"
    other = against if split["method"] == "official" else "official"
    tags = {"split": other, "data_md5": lineage()["data_md5"], "recipe": recipe()}
    found = step(latest_figures, retries=2)(load_params(RegisterParams).experiment, tags)
    gaps = split_optimism(figures, found, against)
    write_json(REPORTS / "split_optimism.json", gaps)
    for method, pair in gaps.items():
        print(
            f"{TITLES[method]}: mean Dice {pair['official']:.3f} on the official split, "
            f"{pair[against]:.3f} on the {against} one: split optimism {pair['gap']:+.3f}"
        )


def draw(scored: pd.DataFrame, histories: pd.DataFrame) -> None:
    """Draws the training curves, the comparison chart and the gallery of predictions."""
    with atomic_path(REPORTS / "history.csv") as temporary:
        means = {
            f"{name}_": seed_means(history).drop(columns="seed")
            for name, history in histories.groupby("network")
        }
        pd.concat([m.add_prefix(name) for name, m in means.items()], axis=1).to_csv(temporary)
    figures.png(figures.training_curves(histories), REPORTS / "curves.png")
    figures.comparison_chart(scored[scored["split"] == "test"], REPORTS / "comparison.png")
    figures.prediction_gallery(scored, DATA, REPORTS / "predictions.png")


if __name__ == "__main__":
    command(evaluate)
