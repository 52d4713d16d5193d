"""A finished comparison as the report and the cards read it, with its caveats and limits."""

from dataclasses import dataclass, field
from importlib.metadata import metadata, version
from pathlib import Path
from platform import python_version
from typing import Any

import pandas as pd

from tumorseg.core.params import NETWORKS
from tumorseg.data.leakage import neighbours_elsewhere
from tumorseg.data.shapes import RECTANGLE_FILL
from tumorseg.evaluation.paired import Difference
from tumorseg.evaluation.results import TITLES
from tumorseg.reporting.wording import fixed, percent, whole
from tumorseg.training.networks import UNet

PACKAGES = ("torch", "lightning", "albumentations", "numpy", "onnxruntime")
MANY_RECTANGLES = 0.5  # the share from which labels as a whole are called boxes


@dataclass(frozen=True)
class Training:
    """One training of one network.

    Attributes:
        run: Its run.json.
        history: A row an epoch: epoch, train_loss, val_loss, val_dice, learning_rate.
    """

    run: dict[str, Any]
    history: pd.DataFrame


def surroundings() -> dict[str, str]:
    """Versions of what a prediction depends on, and the licence of the code."""
    return (
        {"Python": python_version()}
        | {name: version(name) for name in PACKAGES}
        | {"licence of the code": metadata("tumorseg")["License-Expression"] or "not recorded"}
    )


@dataclass(frozen=True)
class ReportData:
    """A finished comparison.

    Attributes:
        figures: reports/metrics.json.
        slices: artifacts/evaluate/masks.parquet: a row a method, seed and slice, with run lengths.
        strata: reports/strata.csv.
        calibration: reports/calibration.csv.
        trainings: Of every network and seed.
        manifest: The split stage's, of all splits.
        audit: reports/audit.json.
        split: reports/split.json.
        params: params.yaml as a mapping.
        lineage: From `tumorseg.registry.runs.lineage`.
        data: The folder to which the manifest's paths are relative.
        gated: An Attention U-Net, in evaluation mode.
        gated_seed: The seed with which it was trained.
        environment: Name → version or the like, for the model card.
    """

    figures: dict[str, Any]
    slices: pd.DataFrame
    strata: pd.DataFrame
    calibration: pd.DataFrame
    trainings: list[Training]
    manifest: pd.DataFrame
    audit: dict[str, Any]
    split: dict[str, Any]
    params: dict[str, Any]
    lineage: dict[str, str]
    data: Path
    gated: UNet
    gated_seed: int
    environment: dict[str, str] = field(default_factory=surroundings)

    @property
    def test(self) -> pd.DataFrame:
        """The rows of the test split."""
        return self.slices[self.slices["split"] == "test"]

    @property
    def usable(self) -> pd.DataFrame:
        """The manifest's rows that can be used."""
        return self.manifest[self.manifest["problem"].isna()]

    @property
    def networks(self) -> list[str]:
        """The networks that were evaluated, in their usual order."""
        return [name for name in NETWORKS if name in self.figures["test"]]

    @property
    def test_slices(self) -> pd.DataFrame:
        """What is known of each test slice, by path.

        Returns:
            tumour_fraction, categories, neighbour_in_train, group_in_train,
            near_duplicate_elsewhere and duplicate_elsewhere (in another split).
        """
        table = self.usable.reset_index(drop=True)
        trained = table.loc[table["split"] == "train", "split_group"]
        table = table.assign(
            neighbour_in_train=neighbours_elsewhere(table, ("train",)),
            group_in_train=table["split_group"].isin(trained),
        )
        names = ["tumour_fraction", "categories", "neighbour_in_train", "group_in_train"]
        names += ["near_duplicate_elsewhere", "duplicate_elsewhere"]
        return table[table["split"] == "test"].set_index("path")[names]

    def seeds(self, network: str) -> list[int]:
        """The seeds with which a network was evaluated on the test split."""
        found = self.test.loc[self.test["method"] == network, "seed"].dropna().unique()
        return sorted(int(seed) for seed in found)

    def shown_seed(self, network: str) -> int:
        """The seed whose masks are drawn: the winner's where the network has it, else the first."""
        seeds = self.seeds(network)
        return self.figures["winner_seed"] if self.figures["winner_seed"] in seeds else seeds[0]


def histories(trainings: list[Training]) -> pd.DataFrame:
    """The histories of all trainings, with columns `network` and `seed`."""
    return pd.concat(
        each.history.assign(network=each.run["network"], seed=each.run["seed"])
        for each in trainings
    )


def seed_means(history: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds by epoch, as far as all of them trained: it would jump where one stops.

    Args:
        history: Of one network: a row a seed and epoch.
    """
    trained = history.groupby("epoch")["seed"].transform("nunique")
    common = history[trained == history["seed"].nunique()]
    return common.groupby("epoch").mean(numeric_only=True)


def over_seeds(slices: pd.DataFrame) -> pd.DataFrame:
    """The Dice of each method and slice, averaged over the seeds of a network.

    Returns:
        A row a method and slice: method, path, group, category, tumour (its true pixels), dice.
    """
    rows = slices.assign(tumour=slices["tp"] + slices["fn"])
    keys = ["method", "path", "group", "category", "tumour"]
    return rows.groupby(keys, dropna=False)["dice"].mean().reset_index()


def caveats(report: ReportData) -> list[str]:
    """The warnings at the head of the report, a sentence each; none where nothing is wrong."""
    return [*_leaks(report), *_boxes(report), *_baselines(report), *_repeats(report)]


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
        which = f"{whole(unnamed)} of {whole(len(usable))} slices"
        if unnamed == len(usable):
            which = "any slice"
        found.append(
            f"The patient is not named for {which}, so that nobody can tell whether a patient is "
            "on both sides of the split."
        )
    if not usable["spacing_mm"].astype(bool).any():
        found.append("No pixel spacing is recorded, so that no distance or area is in millimetres.")
    healthy = test.index[test["tumour_fraction"] == 0]
    if healthy.empty:
        found.append(
            "No test slice is without tumour: how often the networks find one where there is none "
            "was not measured."
        )
        return found
    for name in report.networks:
        rows = report.test[(report.test["method"] == name) & report.test["path"].isin(healthy)]
        empty = float((rows["tp"] + rows["fp"] == 0).mean())
        found.append(
            f"{TITLES[name]} leaves {percent(empty)} of the {whole(len(healthy))} test slices "
            "without tumour empty, averaged over seeds; an empty mask there has Dice 1, any other "
            "has 0."
        )
    return found


def _leaks(report: ReportData) -> list[str]:
    test = report.test_slices
    kinds = {
        "neighbour_in_train": "a neighbouring slice in train",
        "near_duplicate_elsewhere": "a near duplicate on another side",
        "duplicate_elsewhere": "an equal file on another side",
        "group_in_train": "slices of their group in train",
    }
    counts = {what: int(test[column].sum()) for column, what in kinds.items()}
    parts = [f"{whole(count)} have {what}" for what, count in counts.items() if count]
    if not parts:
        return []
    return [
        f"The split leaks: of {whole(len(test))} test slices {', '.join(parts)}. A network can "
        "score there by recognising a patient rather than by finding a tumour."
    ]


def _boxes(report: ReportData) -> list[str]:
    fills = report.usable["box_fill"].dropna()
    boxes = int((fills >= RECTANGLE_FILL).sum())
    if not len(fills) or boxes / len(fills) <= MANY_RECTANGLES:
        return []
    which = f"All {whole(boxes)}" if boxes == len(fills) else f"{whole(boxes)} of {len(fills)}"
    return [
        f"{which} labels are axis-aligned rectangles. Networks trained on them draw boxes, Dice "
        "rewards that, and boundary distances measure the corners of boxes."
    ]


def _baselines(report: ReportData) -> list[str]:
    found = []
    for pair, figures in report.figures["paired"].items():
        name, other = pair.split("-")
        gap = Difference(**figures)
        if other in NETWORKS or (gap.shown and gap.mean > 0):
            continue
        test = report.figures["test"]
        dice = f"{fixed(test[name]['mean_dice'])} against {fixed(test[other]['mean_dice'])}"
        verb = "scores lower than" if gap.shown else "is not shown to beat"
        found.append(
            f"{TITLES[name]} {verb} the {TITLES[other]}, which has no network (mean Dice {dice})."
        )
    return found


def _repeats(report: ReportData) -> list[str]:
    found = []
    if not all(training.run["deterministic"] for training in report.trainings):
        found.append(
            "Deterministic mode was off in training: the same command need not give the same "
            "figures again."
        )
    single = [TITLES[name] for name in report.networks if len(report.seeds(name)) == 1]
    if single:
        found.append(
            f"One seed only for {' and '.join(single)}: how far the figures vary from training to "
            "training was not measured."
        )
    return found
