"""What every importer hands over, and how it finds, names and reads files.

An importer gives a light index of slices, each read only when it is asked for.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tumorseg.core.errors import InputError
from tumorseg.core.files import leads_out
from tumorseg.data.coco import printable
from tumorseg.imaging.display import AXES
from tumorseg.imaging.preprocess import Grey, Mask
from tumorseg.imaging.study import Rejected


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
        axis: One of `AXES`: across which slices are cut; "auto" for each volume's own, axial
            unless another is by far the coarsest, as the service cuts it.
        slices: "all", "tumour" (those with a label) or "every:N".
        modality: End of the file name of the volume to read, such as "t1ce" or "0003".
        lenient: Leave out an image whose mask does not fit or cannot be read, saying why, where
            otherwise the folder is refused.

    Raises:
        InputError: `axis` or `slices` is none of these.
    """

    axis: str = "auto"
    slices: str = "all"
    modality: str | None = None
    lenient: bool = False

    def __post_init__(self) -> None:
        if self.axis not in ("auto", *AXES):
            raise InputError(f"--axis {self.axis}: must be one of auto, {', '.join(AXES)}")
        if not re.fullmatch(r"all|tumour|every:0*[1-9]\d*", self.slices):
            raise InputError(f"--slices {self.slices}: must be all, tumour or every:N with N > 0")

    def take(self, number: int, tumour: bool) -> bool:
        """Whether slice `number`, with or without tumour, is wanted."""
        if self.slices == "tumour":
            return tumour
        return number % int(self.slices.removeprefix("every:").replace("all", "1")) == 0


class Names:
    """Hands out file names that every file system keeps apart."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def __call__(self, stem: str, suffix: str, group: str | None) -> str:
        """A name like `stem` + `suffix` that was not given before.

        Digits that begin a name are read as the place in a scan that all images share. Where
        groups are known, each has its own scan, so such a name gets a letter in front.
        """
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:150].strip("-.") or "slice"
        if group is not None and stem[0].isdigit():
            stem = f"s{stem}"
        name, copy = f"{stem}{suffix}", 1
        while name.lower() in self.taken:
            name, copy = f"{stem}-{copy + 1}{suffix}", copy + 1
        self.taken.add(name.lower())
        return name


def numbered_categories(names: Iterable[str]) -> list[dict[str, Any]]:
    """Entries for COCO's `categories`, numbered from 1."""
    return [
        {"id": number, "name": name, "supercategory": "none"}
        for number, name in enumerate(names, start=1)
    ]


def visible_files(folder: Path) -> list[Path]:
    """All files under a folder, sorted, without hidden ones (macOS leaves `._NAME` in archives)."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(p.startswith((".", "__MACOSX")) for p in path.relative_to(folder).parts)
    )


def refuse_links_out(folder: Path) -> None:
    """Raises InputError if a link under a folder leads out of it: its target was never meant."""
    for path in _everything(folder):
        if path.is_symlink() and leads_out(path, folder):
            raise InputError(
                f"{printable(str(path))}: is a link that leads out of {folder}; put what it means "
                "in its place, or remove it"
            )


def refuse_uncopyable(folder: Path) -> None:
    """Raises InputError if something under a folder is no plain file or folder that can be read.

    Links to folders are refused since they may go round in circles.
    """
    for path in _everything(folder):
        if not os.path.isfile(path) and (path.is_symlink() or not os.path.isdir(path)):
            raise InputError(
                f"{printable(str(path))}: is neither a file nor a folder (a pipe, or a link that "
                "leads to a folder or nowhere); remove it"
            )
        if not os.access(path, os.R_OK):
            raise InputError(f"{printable(str(path))}: may not be read; allow it")


def _everything(folder: Path) -> Iterator[Path]:
    for home, folders, files in os.walk(folder):
        yield from (Path(home, name) for name in sorted(folders + files))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what a library raises over a broken file into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Rejected as error:
        raise InputError(f"{path}: {error.sentence.rstrip('.')}") from None
    except Exception as error:  # decoders' errors have nothing else in common
        reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); export it again") from None
