"""The sections of what comes after the figures, and of what is dealt out over workers."""

import re
from itertools import permutations
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tumorseg.params.base import Fraction, Section
from tumorseg.params.chain import NETWORKS
from tumorseg.serving.api.settings import Settings
from tumorseg.serving.cores import usable_cores

_ADDRESS = re.compile(r"(tcp|tls)://([^\s:/\[\]]+|\[[0-9a-fA-F:]+\]):\d{1,5}")


class RegisterParams(Section):
    """Where the winner goes, and how exactly its ONNX file must answer."""

    section = "register"
    experiment: str = Field(min_length=1)
    model_name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    parity_tolerance: PositiveFloat  # of probabilities, ONNX against PyTorch


class PromoteParams(Section):
    """When a challenger replaces the champion: margins of Dice on the test split, in pairs."""

    section = "promote"
    bootstrap_samples: PositiveInt
    seed: int = Field(ge=0)
    min_gain: float = Fraction  # to be exceeded by the mean gain
    max_loss: float = Fraction  # the gain's 95% interval may not begin below minus this
    max_stratum_loss: float = Fraction  # of the mean, on the slices of any size of tumour
    min_stratum_slices: PositiveInt  # a size with fewer slices has no say


class PackageParams(Section):
    """The bento: the packages of requirements.lock that the service imports, and its limits."""

    section = "package"
    requirements: list[str] = Field(min_length=1)
    service: Settings


# Findings about a single slice, for which a new one can be set aside.
SliceFinding = Literal[
    "size",
    "tumour_fraction",
    "unusual_mode",
    "rotated",
    "coloured",
    "blank",
    "wrong_extension",
    "empty_label",
    "self_intersection",
    "out_of_frame",
]


class RetrainParams(Section):
    """The retraining flow: where new data come in, what is refused, how often a step is tried."""

    section = "retrain"
    inbox: str = Field(min_length=1)  # folders of newly labelled data, one a batch
    quarantine: str = Field(min_length=1)  # receives what may not come in
    quarantine_on: list[SliceFinding]  # besides what cannot be used or is tied to the test split
    valid_share: float = Fraction  # of the new groups; the others are trained on
    settle_seconds: float = Field(ge=0)  # a batch is taken once nothing in it changed for so long
    push: list[Literal["dvc", "git"]]  # where the new versions go, after each is recorded
    retries: int = Field(ge=0, le=50)
    retry_delay_seconds: float = Field(ge=0)  # before the first retry; doubled each time

    @model_validator(mode="after")
    def _folders_are_apart(self) -> "RetrainParams":
        # What is taken in leaves the inbox, and what is refused goes to the quarantine.
        named = {"inbox": self.inbox, "quarantine": self.quarantine, "data": "data"}
        folders = {name: Path(folder).resolve() for name, folder in named.items()}
        for one, other in permutations(folders, 2):
            if folders[one].is_relative_to(folders[other]):
                raise ValueError(f"{one} and {other} must be two folders, neither in the other")
        return self


class DriftParams(Section):
    """The comparison of served with training slices."""

    section = "drift"
    window_hours: PositiveInt  # the slices that were served in so many hours, up to now
    min_rows: PositiveInt  # slices from which on there is a verdict
    min_groups: int = Field(ge=2)  # different requests, and hours, that they came in at least
    alpha: float = Field(gt=0, lt=0.5)  # share of false alarms, over all statistics together
    tolerance: float = Field(ge=0)  # standard deviations by which a quantile may move in any case
    retrain: bool  # whether drift starts the flow `retrain`
    cooldown_hours: float = Field(ge=0)  # from one such start to the next at least


class FannedOutParams(Section):
    """What is dealt out over the workers of a Dask scheduler."""

    scheduler: str | None  # null: processes on this machine, for the time of one run
    workers: PositiveInt  # processes on each machine
    threads: int = Field(ge=0)  # of each; 0 divides the machine's cores among them
    retries: int = Field(ge=0, le=50)

    @field_validator("scheduler")
    @classmethod
    def _is_an_address(cls, scheduler: str | None) -> str | None:
        if scheduler is not None and not _ADDRESS.fullmatch(scheduler):
            raise ValueError("must be null or such as tcp://HOST:8786, or tls://")
        return scheduler

    def threads_here(self) -> int:
        """Threads of one worker on this machine."""
        return self.threads or max(1, usable_cores() // self.workers)


class SegmentParams(FannedOutParams):
    """The segmentation of an archive."""

    section = "segment"
    slices: PositiveInt  # a task, about


class CrossvalidateParams(FannedOutParams):
    """The folds over train and valid."""

    section = "crossvalidate"
    folds: int = Field(ge=2)
    networks: list[Literal["unet", "attention_unet"]] = Field(min_length=1)
    seed: int = Field(ge=0, lt=2**32)  # of the folds, and of each training

    @field_validator("networks")
    @classmethod
    def _networks_differ(cls, networks: list[str]) -> list[str]:
        if len(set(networks)) < len(networks):
            raise ValueError("must differ from each other")
        return sorted(networks, key=NETWORKS.index)
