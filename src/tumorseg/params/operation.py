"""The sections of what comes after the figures: register, promote, package, retrain."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tumorseg.params.base import Fraction, Section
from tumorseg.serving.api.settings import Settings


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
