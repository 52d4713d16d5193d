"""The sections of what comes after the figures: register, package, retrain, drift."""

from pydantic import Field, PositiveFloat, PositiveInt

from tumorseg.params.base import Section
from tumorseg.serving.api.settings import Settings


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
