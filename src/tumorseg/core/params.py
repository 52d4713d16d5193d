"""params.yaml, checked: one class a section, and a wrong key or value is an error that names it."""

import re
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from tumorseg.core.cores import usable_cores
from tumorseg.core.errors import InputError
from tumorseg.core.service_settings import Settings

Fraction = Field(ge=0, le=1)


class Section(BaseModel):
    """A section of params.yaml; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    section: ClassVar[str]


# What validate may find, by name; tumorseg.data.expectations says what each means.
Finding = Literal[
    "unusable",
    "empty_split",
    "size",
    "tumour_fraction",
    "duplicate_across_splits",
    "near_duplicate_across_splits",
    "neighbour_across_splits",
    "only_rectangles",
    "unusual_mode",
    "rotated",
    "coloured",
    "blank",
    "wrong_extension",
    "duplicate_annotation_id",
    "empty_label",
    "self_intersection",
    "out_of_frame",
    "intensity_outlier",
    "size_outlier",
]
FINDINGS: tuple[str, ...] = get_args(Finding)


class ValidateParams(Section):
    """What an acceptable data set is."""

    section = "validate"
    min_side: PositiveInt  # pixels
    max_side: PositiveInt
    max_tumour_fraction: float = Fraction
    name_pattern: str  # regular expression with the groups `number` and, if wanted, `group`
    near_duplicate: float = Field(gt=0, le=1)  # correlation of thumbnails
    stop_on: list[Finding]
    quarantine: bool

    @model_validator(mode="after")
    def _sides_fit(self) -> "ValidateParams":
        if self.min_side > self.max_side:
            raise ValueError("min_side must not be above max_side")
        return self

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
    """Who is trained on, who chooses, who is tested on."""

    section = "split"
    method: Literal["official", "grouped"]
    seed: int = Field(ge=0)
    shortest_block: PositiveInt  # slices
    longest_block: PositiveInt

    @model_validator(mode="after")
    def _blocks_fit(self) -> "SplitParams":
        if self.longest_block < 2 * self.shortest_block:
            raise ValueError("longest_block must be at least twice shortest_block")
        return self


class AugmentParams(Section):
    """The grid of the arrays and the strength of each random transformation."""

    section = "augment"
    image_size: PositiveInt = Field(multiple_of=16)  # four poolings
    rotation_degrees: float = Field(ge=0, le=180)
    shift: float = Fraction  # of the side
    shear_degrees: float = Field(ge=0, le=45)
    zoom: float = Field(ge=0, lt=1)  # 0.2 is a scale of 0.8 to 1.2
    affine_probability: float = Fraction
    horizontal_flip_probability: float = Fraction
    vertical_flip_probability: float = Fraction
    brightness: float = Fraction
    contrast: float = Fraction
    gamma: float = Field(ge=0, lt=1)  # 0.2 is an exponent of 0.8 to 1.2
    noise: float = Fraction  # standard deviation, of full scale
    intensity_probability: float = Fraction


class CommonTrainParams(Section):
    """What both networks share, so that only their architecture differs."""

    section = "train"
    epochs: PositiveInt
    batch_size: PositiveInt  # slices an optimiser step, over all devices
    micro_batch_size: PositiveInt  # slices on one device at a time; gradients are summed
    learning_rate: PositiveFloat  # with one_cycle, the highest
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
    early_stopping_patience: PositiveInt
    workers: int = Field(ge=0)
    devices: PositiveInt  # processes on this node, one a GPU or so many on its CPU
    nodes: PositiveInt
    precision: Literal["auto", "32-true", "bf16-mixed"]  # auto: bf16 where there is such hardware
    compile: bool
    deterministic: bool

    @model_validator(mode="after")
    def _is_trained(self) -> "CommonTrainParams":
        if self.bce_weight == self.dice_weight == 0:
            raise ValueError("bce_weight and dice_weight must not both be 0")
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError("minimum_learning_rate must not be above learning_rate")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> "CommonTrainParams":
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
    """One network: channels a level, from full resolution to the bottom."""

    section = "train"
    channels: list[PositiveInt] = Field(min_length=2, max_length=5)
    norm: Literal["batch", "instance", "none"]
    space_to_depth: int = Field(ge=1, le=4)  # pixels a side that the first level takes as one


class TrainParams(Section):
    """The training of both networks."""

    section = "train"
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(min_length=1)  # a training each
    common: CommonTrainParams
    unet: NetworkParams
    attention_unet: NetworkParams

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must differ from each other")
        return seeds

    def network(self, name: str) -> NetworkParams:
        """The section of one network, `unet` or `attention_unet`."""
        if name not in NETWORKS:
            raise InputError(f"no network is called {name!r}: choose one of {', '.join(NETWORKS)}")
        return getattr(self, name)


NETWORKS = ("unet", "attention_unet")


class EvaluateParams(Section):
    """How masks are cut and intervals drawn."""

    section = "evaluate"
    # A probability, or `validation`: for each network the one that is best there.
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["validation"]
    test_time_flips: bool  # averages the probabilities of the slice and of its mirror image
    surface_tolerance: PositiveFloat  # mm where the spacing is known, else pixels of the image
    lesion_overlap: float = Field(gt=0, le=1)  # share that makes a lesion found, a call right
    bootstrap_samples: PositiveInt
    seed: int = Field(ge=0)


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


SECTIONS: tuple[type[Section], ...] = (
    ValidateParams,
    SplitParams,
    AugmentParams,
    TrainParams,
    EvaluateParams,
    RegisterParams,
    PromoteParams,
    PackageParams,
    RetrainParams,
    DriftParams,
    SegmentParams,
    CrossvalidateParams,
)
# Keys of version 0.1 → their present names.
RENAMED = {"most_at_once": "micro_batch_size", "stem": "space_to_depth"}
SectionT = TypeVar("SectionT", bound=Section)


def load_params(kind: type[SectionT], path: Path = Path("params.yaml")) -> SectionT:
    """Reads params.yaml, checks all of it, and returns one section.

    Args:
        kind: The section's class, such as `TrainParams`.
        path: The file.

    Raises:
        InputError: The file is missing or is no YAML mapping, or a section or key is unknown,
            missing or wrong; the message names each as `section.key`.
    """
    asked = check(read_document(path), path)[kind.section]
    assert isinstance(asked, kind)
    return asked


def read_document(path: Path) -> dict[str, Any]:
    """Reads params.yaml as it is.

    Raises:
        InputError: It is missing or is no YAML mapping.
    """
    try:
        document: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); run in the repository's root"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold sections of keys, such as 'train:'")
    return document


def check(document: Mapping[str, Any], where: object) -> dict[str, Section]:
    """Checks all sections, and returns them by name.

    Args:
        document: What params.yaml holds.
        where: What messages begin with.

    Raises:
        InputError: As `load_params`.
    """
    known = {section.section: section for section in SECTIONS}
    problems = [f"{name}: unknown section" for name in document if name not in known]
    parsed: dict[str, Section] = {}
    for name, section in known.items():
        if document.get(name) is None:
            problems.append(f"{name}: missing section")
            continue
        try:
            parsed[name] = section.model_validate(document.get(name))
        except ValidationError as error:
            problems += [_sentence(name, problem) for problem in error.errors()]
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))
    return parsed


def _sentence(section: str, problem: Any) -> str:
    key = ".".join([section, *map(str, problem["loc"])])
    if problem["type"] == "extra_forbidden":
        new = RENAMED.get(str(problem["loc"][-1]))
        return f"{key}: {f'is called {new} since version 0.2' if new else 'unknown key'}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):  # several keys together
        return f"{key}: {message}"
    return f"{key}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"
