"""The sections of what comes after the figures: register, promote, package, retrain, drift."""

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
