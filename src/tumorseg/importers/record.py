"""What every importer hands over: a light index of slices, each read only when it is asked for."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import Grey, Mask
from tumorseg.imaging.reslice import AXES


@dataclass(frozen=True)
class Drawn:
    """A slice as pixels.

    Attributes:
        grey: uint8, shape (H, W).
        masks: Category's name → bool, shape (H, W). A category that is not there may be left out.
    """

    grey: Grey
    masks: dict[str, Mask]


@dataclass(frozen=True)
class Copied:
    """A slice that has COCO annotations already: nothing is decoded or drawn anew.

    Attributes:
        image: The bytes of the image's file.
        entry: Its entry under `images`.
        annotations: Its entries under `annotations`.
    """

    image: bytes
    entry: dict[str, Any]
    annotations: list[dict[str, Any]]


@dataclass(frozen=True)
class Record:
    """One slice.

    Attributes:
        name: File name in the new data set: unique, of letters, digits, `.`, `_` and `-`.
        group: Identity of the patient or series; None if unknown.
        number: Position of the slice within its group; None if unknown.
        split: train, valid or test where the source says so, else None.
        spacing: Distance of rows and of columns, in mm; None if unknown.
        categories: Names the categories that are in the slice; cheaper than `load`.
        load: Reads the slice. Raises InputError if that fails.
    """

    name: str
    group: str | None
    number: int | None
    split: str | None
    spacing: tuple[float, float] | None
    categories: Callable[[], Collection[str]]
    load: Callable[[], Drawn | Copied]


@dataclass(frozen=True)
class Source:
    """A folder as an importer sees it.

    Attributes:
        records: In the order in which reading them is fast.
        categories: Entries for COCO's `categories`.
        skipped: Path → why it is left out.
        doubts: What the user should look at; one sentence each.
        header: Other top-level keys of the JSON files, such as `licenses`.
        layout: Set if this folder has the project's layout, to be copied byte for byte.
    """

    records: list[Record]
    categories: list[dict[str, Any]]
    skipped: dict[Path, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    header: dict[str, Any] = field(default_factory=dict)
    layout: Path | None = None


@dataclass(frozen=True)
class Options:
    """How volumes become slices; other formats have slices already.

    Attributes:
        axis: One of `AXES`: across which slices are cut.
        slices: "all", "tumour" (those with a label) or "every:N".
        modality: End of the file name of the volume to read, such as "t1ce" or "0003".
        lenient: Leave out an image whose mask does not fit or cannot be read, saying why, where
            otherwise the folder is refused.

    Raises:
        InputError: `axis` or `slices` is none of these.
    """

    axis: str = "axial"
    slices: str = "all"
    modality: str | None = None
    lenient: bool = False

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise InputError(f"--axis {self.axis}: must be one of {', '.join(AXES)}")
        if not re.fullmatch(r"all|tumour|every:0*[1-9]\d*", self.slices):
            raise InputError(f"--slices {self.slices}: must be all, tumour or every:N with N > 0")

    def take(self, number: int, tumour: bool) -> bool:
        """Whether slice `number`, with or without tumour, is wanted."""
        if self.slices == "tumour":
            return tumour
        return number % int(self.slices.removeprefix("every:").replace("all", "1")) == 0
