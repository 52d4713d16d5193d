"""params.yaml, checked: one class a section, and a wrong key or value is an error that names it."""

import re
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from joblib import cpu_count
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from tumorseg.core.errors import InputError
from tumorseg.core.service_settings import Settings

PARAMS = Path("params.yaml")
# Keys of version 0.1 → their present names.
RENAMED = {"most_at_once": "micro_batch_size", "stem": "space_to_depth"}
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("must differ from each other")
    return values


class Section(BaseModel):
    """A section of params.yaml; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# What validate may find; tumorseg.data.expectations says what each means.
# fmt: off
Finding = Literal[
    "unusable", "empty_split", "size", "tumour_fraction", "duplicate_across_splits",
    "near_duplicate_across_splits", "neighbour_across_splits", "only_rectangles", "unusual_mode",
    "rotated", "coloured", "blank", "wrong_extension", "duplicate_annotation_id", "empty_label",
    "self_intersection", "out_of_frame", "intensity_outlier", "size_outlier",
]
# fmt: on
FINDINGS: tuple[str, ...] = get_args(Finding)


class ValidateParams(Section):
    """What an acceptable data set is."""

    min_side: PositiveInt  # pixels
    max_side: PositiveInt
    max_tumour_fraction: Fraction
    name_pattern: str  # regular expression with the groups `number` and, if wanted, `group`
    near_duplicate: float = Field(gt=0, le=1)  # correlation of thumbnails
    stop_on: list[Finding]
    quarantine: bool

    @field_validator("name_pattern")
    @classmethod
    def _names_its_groups(cls, pattern: str) -> str:
        try:
            groups = set(re.compile(pattern).groupindex)
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        if not groups or groups - {"number", "group"}:
            raise ValueError("needs the named groups (?P<number>…) or (?P<group>…), and no others")
        return pattern


class SplitParams(Section):
    """Which slices are for training, validation and test."""

    # auto: patient where the data give every slice's, else official.
    method: Literal["auto", "official", "patient", "guessed"]
    seed: Seed
    shortest_block: PositiveInt  # slices; where groups are guessed
    longest_block: PositiveInt

    @field_validator("method", mode="before")
    @classmethod
    def _has_its_new_name(cls, method: Any) -> Any:
        if method == "grouped":
            raise ValueError("is called guessed since version 0.2")
        return method

    @model_validator(mode="after")
    def _blocks_fit(self) -> "SplitParams":
        if self.longest_block < 2 * self.shortest_block:
            raise ValueError("longest_block must be at least twice shortest_block")
        return self


class AugmentParams(Section):
    """The grid of the arrays and the strength of each random transformation."""

    image_size: PositiveInt = Field(multiple_of=16)  # four poolings
    rotation_degrees: float = Field(ge=0, le=180)
    shift: Fraction  # of the side
    shear_degrees: float = Field(ge=0, le=45)
    zoom: float = Field(ge=0, lt=1)  # 0.2 is a scale of 0.8 to 1.2
    affine_probability: Fraction
    horizontal_flip_probability: Fraction
    vertical_flip_probability: Fraction
    brightness: Fraction
    contrast: Fraction
    gamma: float = Field(ge=0, lt=1)  # 0.2 is an exponent of 0.8 to 1.2
    noise: Fraction  # standard deviation, of full scale
    intensity_probability: Fraction
    elastic_probability: Fraction
    bias_field_probability: Fraction
    blur_probability: Fraction
    low_resolution_probability: Fraction


class CommonTrainParams(Section):
    """What both networks share, so that only their architecture differs."""

    epochs: PositiveInt
    batch_size: PositiveInt  # slices an optimiser step, over all devices
    micro_batch_size: PositiveInt  # slices on one device at a time; gradients are summed
    learning_rate: PositiveFloat  # with one_cycle, the highest
    encoder_rate: PositiveFloat  # of a pretrained encoder, in multiples of learning_rate
    weight_decay: float = Field(ge=0)
    schedule: Literal["plateau", "one_cycle"]
    warm_up: float = Field(gt=0, lt=1)  # of one_cycle's steps
    plateau_factor: float = Field(gt=0, lt=1)
    plateau_patience: PositiveInt
    minimum_learning_rate: float = Field(ge=0)
    weight_averaging: float = Field(ge=0, lt=1)  # decay a step of the average; 0 is none
    bce_weight: float = Field(ge=0)
    dice_weight: float = Field(ge=0)
    dice_over: Literal["batch", "slice"]  # which pixels the Dice loss pools
    # Whose weights are kept: of the epoch with the lowest validation loss, the highest validation
    # Dice, or the last one, which nothing stops early then.
    best_epoch: Literal["loss", "dice", "last"]
    early_stopping_patience: PositiveInt
    workers: int = Field(ge=0)
    devices: PositiveInt  # processes on this node, one a GPU or so many on its CPU
    nodes: PositiveInt
    precision: Literal["auto", "32-true", "bf16-mixed"]  # auto: bf16 where there is such hardware
    compile: bool
    deterministic: bool

    @model_validator(mode="after")
    def _keys_fit(self) -> "CommonTrainParams":
        if self.bce_weight == self.dice_weight == 0:
            raise ValueError("bce_weight and dice_weight must not both be 0")
        if self.batch_size % (self.devices * self.nodes):
            raise ValueError("batch_size must be a multiple of devices × nodes")
        share = self.batch_size // (self.devices * self.nodes)
        if share > self.micro_batch_size and share % self.micro_batch_size:
            raise ValueError(
                f"each device's share of batch_size, {share}, must be a multiple of "
                "micro_batch_size"
            )
        return self


class NetworkParams(Section):
    """One network: its encoder, and channels a level, from full resolution to the bottom."""

    encoder: Literal["plain", "efficientnet_lite0"]  # the latter begins with ImageNet's weights
    # With efficientnet_lite0 those of the decoder, whose levels have strides 2, 4, 8 and 16.
    channels: list[PositiveInt] = Field(min_length=2, max_length=5)
    norm: Literal["batch", "instance", "none"]
    space_to_depth: int = Field(ge=1, le=4)  # pixels a side that the first level takes as one

    @model_validator(mode="after")
    def _fits_its_encoder(self) -> "NetworkParams":
        shape = (len(self.channels), self.space_to_depth)
        if self.encoder != "plain" and shape != (4, 2):
            raise ValueError(f"{self.encoder} needs 4 channels and a space_to_depth of 2")
        return self

    @property
    def stride(self) -> int:
        """Of the lowest level: the image's sides are multiples of it."""
        halvings = len(self.channels) - (self.encoder == "plain")
        return self.space_to_depth * 2**halvings


class TrainParams(Section):
    """The training of both networks."""

    # One training each.
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
    encoder_weights: str | None  # a .pth or .safetensors; null: those of the installed package
    common: CommonTrainParams
    unet: NetworkParams
    attention_unet: NetworkParams

    def network(self, name: str) -> NetworkParams:
        """The section of one network, `unet` or `attention_unet`."""
        return {"unet": self.unet, "attention_unet": self.attention_unet}[name]


NETWORKS = ("unet", "attention_unet")


class EvaluateParams(Section):
    """How masks are cut and intervals drawn."""

    # A probability, or `validation`: for each network the one that is best there.
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["validation"]
    test_time_flips: bool  # averages the probabilities of the slice and of its mirror image
    surface_tolerance: PositiveFloat  # mm where the spacing is known, else pixels of the image
    lesion_overlap: float = Field(gt=0, le=1)  # share that makes a lesion found, a call right
    bootstrap_samples: PositiveInt
    seed: Seed


class RegisterParams(Section):
    """Where the winner goes, and how exactly its ONNX file must answer."""

    experiment: str = Field(min_length=1)
    model_name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    parity_tolerance: PositiveFloat  # of probabilities, ONNX against PyTorch


class PromoteParams(Section):
    """When a challenger replaces the champion: margins of Dice on the test split, in pairs."""

    bootstrap_samples: PositiveInt
    seed: Seed
    min_gain: Fraction  # to be exceeded by the mean gain
    max_loss: Fraction  # the gain's 95% interval may not begin below minus this
    max_stratum_loss: Fraction  # of the mean, on the slices of any size of tumour
    min_stratum_slices: PositiveInt  # a size with fewer slices is not compared


class PackageParams(Section):
    """The bento: the packages of requirements.lock that the service imports, and its limits."""

    requirements: list[str] = Field(min_length=1)
    service: Settings


class RetrainParams(Section):
    """The retraining flow: where new data come in, what is refused, how often a step is tried."""

    inbox: str = Field(min_length=1)  # folders of newly labelled data, one a batch
    quarantine: str = Field(min_length=1)  # receives what may not come in
    quarantine_on: list[Finding]  # besides what is unusable or tied to the test split
    valid_share: Fraction  # of the new groups; the others are trained on
    settle_seconds: float = Field(ge=0)  # a batch is taken once nothing in it changed for so long
    push: list[Literal["dvc", "git"]]  # where the new versions go, after each is recorded
    retries: int = Field(ge=0, le=50)
    retry_delay_seconds: float = Field(ge=0)  # before the first retry; doubled each time

    @model_validator(mode="after")
    def _folders_are_apart(self) -> "RetrainParams":
        named = {"inbox": self.inbox, "quarantine": self.quarantine, "data": "data"}
        folders = {name: Path(folder).resolve() for name, folder in named.items()}
        for one, other in permutations(folders, 2):
            if folders[one].is_relative_to(folders[other]):
                raise ValueError(f"{one} and {other} must be two folders, neither in the other")
        return self


class DriftParams(Section):
    """The comparison of served with training slices."""

    window_hours: PositiveInt  # the slices that were served in so many hours, up to now
    min_rows: PositiveInt  # slices from which on there is a verdict
    min_groups: int = Field(ge=2)  # different requests, and hours, that they came in at least
    alpha: float = Field(gt=0, lt=0.5)  # share of false alarms, over all statistics together
    tolerance: float = Field(ge=0)  # standard deviations by which a quantile may move in any case
    retrain: bool  # whether drift starts the flow `retrain`
    cooldown_hours: float = Field(ge=0)  # from one such start to the next at least


class FannedOutParams(Section):
    """Work that is divided among the workers of a Dask scheduler."""

    # Such as tcp://HOST:8786; null: processes on this machine, for one run.
    scheduler: Annotated[str, Field(pattern=r"^(tcp|tls)://\S+:\d+$")] | None
    workers: PositiveInt  # processes on each machine
    threads: int = Field(ge=0)  # of each; 0 divides the machine's cores among them
    retries: int = Field(ge=0, le=50)

    def threads_here(self) -> int:
        """Threads of one worker on this machine."""
        return self.threads or max(1, cpu_count() // self.workers)


class SegmentParams(FannedOutParams):
    """The segmentation of an archive."""

    slices: PositiveInt  # a task, about


class CrossvalidateParams(FannedOutParams):
    """The folds over the slices of all splits."""

    # How many to divide them into, or `given`: those that the data name.
    folds: Annotated[int, Field(ge=2)] | Literal["given"]
    networks: Annotated[
        list[Literal["unet", "attention_unet"]], Field(min_length=1), AfterValidator(_distinct)
    ]
    seed: Seed  # of the folds, and of each training


SECTIONS: dict[str, type[Section]] = {
    "validate": ValidateParams,
    "split": SplitParams,
    "augment": AugmentParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "register": RegisterParams,
    "promote": PromoteParams,
    "package": PackageParams,
    "retrain": RetrainParams,
    "drift": DriftParams,
    "segment": SegmentParams,
    "crossvalidate": CrossvalidateParams,
}
SectionT = TypeVar("SectionT", bound=Section)


def load_params(kind: type[SectionT], path: Path = PARAMS) -> SectionT:
    """Reads params.yaml, checks all of it, and returns one section.

    Args:
        kind: The section's class, such as `TrainParams`.
        path: The file.

    Raises:
        InputError: The file is missing or is no YAML mapping, or a section or key is unknown,
            missing or wrong; the message names each as `section.key`.
    """
    return next(found for found in check(read_document(path), path) if isinstance(found, kind))


def read_document(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping, such as params.yaml.

    Raises:
        InputError: It is missing or holds no YAML mapping.
    """
    try:
        document: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        reason = f"{error.strerror}; run in the repository's root"
        raise InputError(f"{path}: cannot be read ({reason})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold sections of keys, such as 'train:'")
    return document


def check(document: Mapping[str, Any], where: object) -> list[Section]:
    """Checks all sections of params.yaml, and returns them.

    Args:
        document: From `read_document`.
        where: What error messages begin with.

    Raises:
        InputError: As `load_params`.
    """
    problems = [f"{name}: unknown section" for name in document if name not in SECTIONS]
    parsed = []
    for name, section in SECTIONS.items():
        if document.get(name) is None:
            problems.append(f"{name}: missing section")
            continue
        try:
            parsed.append(section.model_validate(document[name]))
        except ValidationError as error:
            problems += [_sentence(name, problem) for problem in error.errors()]
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))
    return parsed


def _sentence(section: str, problem: Any) -> str:
    key = ".".join([section, *map(str, problem["loc"])])
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] == "extra_forbidden":
        new = RENAMED.get(str(problem["loc"][-1]))
        return f"{key}: {f'is called {new} since version 0.2' if new else 'unknown key'}"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):  # several keys together
        return f"{key}: {message}"
    return f"{key}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"
