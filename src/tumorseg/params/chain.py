"""The sections of the chain from data to figures: validate, split, augment, train, evaluate."""

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tumorseg.errors import InputError
from tumorseg.params.base import Fraction, Section

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
    most_at_once: PositiveInt  # slices on one device at a time; gradients are summed to batch_size
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
    rendezvous: str = Field(pattern=r"^[^\s:]+:\d+$")  # where several nodes meet, host:port
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
        if share > self.most_at_once and share % self.most_at_once:
            raise ValueError(
                f"each device's share of batch_size, {share}, must be a multiple of most_at_once"
            )
        return self


class NetworkParams(Section):
    """One network: channels a level, from full resolution to the bottom."""

    section = "train"
    channels: list[PositiveInt] = Field(min_length=2, max_length=5)
    norm: Literal["batch", "instance", "none"]
    stem: int = Field(ge=1, le=4)  # pixels a side that the first level takes as one


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
