"""What the report and the cards are made from, and what both read off it."""

from dataclasses import dataclass, field
from importlib.metadata import metadata, version
from pathlib import Path
from platform import python_version
from typing import Any

import pandas as pd

from tumorseg.core.params import NETWORKS
from tumorseg.data.leakage import neighbours_elsewhere
from tumorseg.training.networks import UNet

PACKAGES = ("torch", "lightning", "albumentations", "numpy", "onnxruntime")


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
class ReportInputs:
    """A finished comparison.

    Attributes:
        figures: reports/metrics.json.
        slices: artifacts/evaluate/masks.parquet: a row a method, seed and slice, with run lengths.
        strata: reports/strata.csv.
        calibration: reports/calibration.csv.
        trainings: Of every network and seed.
        manifest: The split stage's, all sides.
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
    def bootstrap(self) -> tuple[int, int]:
        """Samples and seed of every bootstrap."""
        section = self.params["evaluate"]
        return int(section["bootstrap_samples"]), int(section["seed"])

    def seeds(self, network: str) -> list[int]:
        """The seeds with which a network was judged on the test split."""
        found = self.test.loc[self.test["method"] == network, "seed"].dropna().unique()
        return sorted(int(seed) for seed in found)

    def shown_seed(self, network: str) -> int:
        """The seed whose masks are drawn: the winner's where the network has it, else the first."""
        seeds = self.seeds(network)
        return self.figures["winner_seed"] if self.figures["winner_seed"] in seeds else seeds[0]

    def test_facts(self) -> pd.DataFrame:
        """What is known of each test slice, by path.

        Returns:
            height, width, tumour_fraction, categories, neighbour_in_train, group_in_train,
            near_duplicate_elsewhere and duplicate_elsewhere (in another side).
        """
        table = self.usable.reset_index(drop=True)
        trained = table.loc[table["split"] == "train", "split_group"]
        table = table.assign(
            neighbour_in_train=neighbours_elsewhere(table, ("train",)),
            group_in_train=table["split_group"].isin(trained),
        )
        names = ["height", "width", "tumour_fraction", "categories", "neighbour_in_train"]
        names += ["group_in_train", "near_duplicate_elsewhere", "duplicate_elsewhere"]
        return table[table["split"] == "test"].set_index("path")[names]


def over_seeds(slices: pd.DataFrame) -> pd.DataFrame:
    """The Dice of each method and slice, averaged over the seeds of a network.

    Returns:
        A row a method and slice: method, path, group, category, tumour (its true pixels), dice.
    """
    rows = slices.assign(tumour=slices["tp"] + slices["fn"])
    keys = ["method", "path", "group", "category", "tumour"]
    return rows.groupby(keys, dropna=False)["dice"].mean().reset_index()


def networks_of(inputs: ReportInputs) -> list[str]:
    """The networks that were judged, in their usual order."""
    return [name for name in NETWORKS if name in inputs.figures["test"]]
