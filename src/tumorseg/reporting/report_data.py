"""A finished comparison as the report and the cards read it, with its caveats and limits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tumorseg.core.params import NETWORKS
from tumorseg.data.leakage import neighbours_elsewhere
from tumorseg.data.shapes import RECTANGLE_FILL
from tumorseg.data.splits import NO_PATIENTS
from tumorseg.evaluation.metrics import group_name
from tumorseg.evaluation.paired import Difference
from tumorseg.evaluation.results import TITLES
from tumorseg.training.networks import UNet

MANY_RECTANGLES = 0.5  # the share of labels above which rectangles are warned of
LEAKS = {
    "neighbour_in_train": "a neighbouring slice in train",
    "near_duplicate_elsewhere": "a near duplicate in another split",
    "duplicate_elsewhere": "an equal file in another split",
    "group_in_train": "slices of their {group} in train",
}


@dataclass(frozen=True)
class ReportData:
    """A finished comparison.

    Attributes:
        figures: reports/metrics.json.
        slices: artifacts/evaluate/masks.parquet: a row a method, seed and slice, with run lengths.
        strata: reports/strata.csv.
        calibration: reports/calibration.csv.
        runs: run.json of every network and seed.
        histories: A row a network, seed and epoch: network, seed, epoch, train_loss, val_loss,
            val_dice, learning_rate.
        manifest: The split stage's, of all splits.
        audit: reports/audit.json.
        split: reports/split.json.
        params: params.yaml as a mapping.
        lineage: From `tumorseg.registry.runs.lineage`.
        data: The folder to which the manifest's paths are relative.
        gated: The Attention U-Net of the winner's seed, in evaluation mode.
        crossvalidation: reports/crossvalidation.json; None if there was no cross-validation.
    """

    figures: dict[str, Any]
    slices: pd.DataFrame
    strata: pd.DataFrame
    calibration: pd.DataFrame
    runs: list[dict[str, Any]]
    histories: pd.DataFrame
    manifest: pd.DataFrame
    audit: dict[str, Any]
    split: dict[str, Any]
    params: dict[str, Any]
    lineage: dict[str, str]
    data: Path
    gated: UNet
    crossvalidation: dict[str, Any] | None

    @property
    def test(self) -> pd.DataFrame:
        """The rows of the test split."""
        return self.slices[self.slices["split"] == "test"]

    @property
    def usable(self) -> pd.DataFrame:
        """The manifest's usable rows, with `neighbour_in_train` and `group_in_train`."""
        table = self.manifest[self.manifest["problem"].isna()].reset_index(drop=True)
        trained = table.loc[table["split"] == "train", "split_group"]
        return table.assign(
            neighbour_in_train=neighbours_elsewhere(table, ("train",)),
            group_in_train=table["split_group"].isin(trained),
        )

    @property
    def test_slices(self) -> pd.DataFrame:
        """tumour_fraction, categories and the columns of `LEAKS` of each test slice, by path."""
        table = self.usable.set_index("path")
        return table.loc[table["split"] == "test", ["tumour_fraction", "categories", *LEAKS]]


def seed_means(history: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds by epoch, as long as all of them trained.

    Args:
        history: Of one network: a row a seed and epoch.
    """
    trained = history.groupby("epoch")["seed"].transform("nunique")
    common = history[trained == history["seed"].nunique()]
    return common.groupby("epoch").mean(numeric_only=True)


def over_seeds(slices: pd.DataFrame) -> pd.DataFrame:
    """The Dice of each slice (rows, by path) and method (columns), averaged over seeds."""
    return slices.pivot_table(index="path", columns="method", values="dice")


def caveats(report: ReportData) -> list[str]:
    """The warnings at the head of the report, a sentence each; none where nothing is wrong."""
    known = report.split["patients_known"]
    found = [] if known else [NO_PATIENTS]
    test = report.test_slices
    counts = {what: int(test[column].sum()) for column, what in LEAKS.items()}
    leaks = ", ".join(f"{count:,} have {what}" for what, count in counts.items() if count)
    leaks = leaks.format(group=group_name(known))
    if leaks:
        found.append(
            f"The split leaks: of {len(test):,} test slices {leaks}. A network can score there by "
            "recognising a patient rather than by finding a tumour."
        )
    fills = report.usable["box_fill"].dropna()
    boxes = int((fills >= RECTANGLE_FILL).sum())
    if boxes > MANY_RECTANGLES * len(fills):
        found.append(
            f"{boxes:,} of {len(fills):,} labels are axis-aligned rectangles. Networks trained on "
            "them draw boxes, Dice rewards that, and boundary distances measure the corners of "
            "boxes."
        )
    scores = report.figures["test"]
    for pair, figures in report.figures["paired"].items():
        name, other = pair.split("-")
        gap = Difference(**figures)
        if other in NETWORKS or (gap.shown and gap.mean > 0):
            continue
        verb = "scores lower than" if gap.shown else "is not shown to beat"
        found.append(
            f"{TITLES[name]} {verb} the {TITLES[other]}, which has no network (mean Dice "
            f"{scores[name]['mean_dice']:.3f} against {scores[other]['mean_dice']:.3f})."
        )
    if not all(run["deterministic"] for run in report.runs):
        found.append("Deterministic mode was off: the same training may give other figures.")
    if report.figures["test"][NETWORKS[0]]["seeds"] == 1:
        found.append(
            "There is one seed only: how far the figures vary from training to training was not "
            "measured."
        )
    return found


def limits(report: ReportData) -> list[str]:
    """What a user of the model must know besides `caveats`: what was not measured or not known."""
    usable, test = report.usable, report.test_slices
    found = [
        "Each slice is segmented alone: the network sees neither the slices beside it nor another "
        "sequence of the same patient.",
        "Training, choice and test use one data set; how the figures carry over to other scanners, "
        "protocols or patients was not measured.",
    ]
    unnamed = int(usable["group"].isna().sum())
    if unnamed:
        found.append(
            f"The patient is not named for {unnamed:,} of {len(usable):,} slices, and so may be in "
            "several splits."
        )
    if not usable["spacing_mm"].astype(bool).any():
        found.append("No pixel spacing is recorded, so that no distance or area is in millimetres.")
    healthy = test.index[test["tumour_fraction"] == 0]
    if healthy.empty:
        found.append("No test slice is without tumour: false alarms there were not measured.")
        return found
    for name in NETWORKS:
        rows = report.test[(report.test["method"] == name) & report.test["path"].isin(healthy)]
        empty = float((rows["tp"] + rows["fp"] == 0).mean())
        found.append(
            f"{TITLES[name]} leaves {empty:.1%} of the {len(healthy):,} test slices without tumour "
            "empty, averaged over seeds; an empty mask there has Dice 1, any other has 0."
        )
    return found
