"""The sections of what comes after the figures, and of what is dealt out over workers."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from tumorseg.params.base import Section
from tumorseg.params.chain import NETWORKS
from tumorseg.serving.api.settings import Settings
from tumorseg.serving.cores import usable_cores


class RegisterParams(Section):
    """Where the winner goes, and by how much it must beat the champion to replace it."""

    section = "register"
    experiment: str = Field(min_length=1)
    model_name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    min_gain: float = Field(ge=0)  # of mean Dice on the validation split
    parity_tolerance: PositiveFloat  # of probabilities, ONNX against PyTorch


class PackageParams(Section):
    """The bento: the packages of requirements.lock that the service imports, and its limits."""

    section = "package"
    requirements: list[str] = Field(min_length=1)
    service: Settings


class RetrainParams(Section):
    """The retraining flow."""

    section = "retrain"
    retries: int = Field(ge=0, le=50)
    retry_delay_seconds: float = Field(ge=0)


class FannedOutParams(Section):
    """What is dealt out over the workers of a Dask scheduler."""

    # null: processes on this machine, for the time of one run.
    scheduler: (
        Annotated[str, Field(pattern=r"^(tcp|tls)://([^\s:/\[\]]+|\[[0-9a-fA-F:]+\]):\d{1,5}$")]
        | None
    )
    workers: PositiveInt  # processes on each machine
    threads: int = Field(ge=0)  # of each; 0 divides the machine's cores among them
    retries: int = Field(ge=0, le=50)

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
