"""What every importer returns, and how files are found and read.

An importer gives a light index of slices; each is read only when it is written.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from tumorseg.core.errors import InputError
from tumorseg.core.files import leads_out
from tumorseg.data.coco import printable
from tumorseg.imaging.display import AXES
from tumorseg.imaging.preprocess import Grey, Mask
from tumorseg.imaging.study import Rejected

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


Labels = list[tuple[str, dict[str, Any]]]  # category's name and COCO annotation, without ids


@dataclass(frozen=True)
class Record:
    """One slice in the index.

    Attributes:
        name: File name in the new data set; `use_unique_names` makes it unique and portable.
        group: Identity of the patient or series; None if unknown.
        number: Position of the slice within its group; None if unknown.
        split: train, valid or test where the source says so, else None.
        spacing: Distance of rows and of columns, in mm; None if unknown.
        labels: Category's name and COCO annotation, of each.
        load: Reads the grey values, uint8, shape (H, W), or the bytes of a file that is copied.
            Raises InputError if that fails.
        entry: Further keys of its entry under `images`, where that is copied.
    """

    name: str
    group: str | None
    number: int | None
    split: str | None
    spacing: tuple[float, float] | None
    labels: Labels
    load: Callable[[], Grey | bytes]
    entry: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a CSV file says of the patients of a source.

    Attributes:
        file: The CSV file.
        groups: The patient of each record; what the source says where no row names the slice.
        without: Names of the slices that no row names.
        unused: Number of rows that name no slice.
        changed: Number of slices to which the source gave another patient.
    """

    file: Path
    groups: list[str | None]
    without: list[str]
    unused: int
    changed: int

    def lines(self) -> list[str]:
        """What a summary says of it."""
        file, count = self.file.name, len(self.groups)
        found = [
            f"given       {file} names {count - len(self.without)} of {count} slices, and "
            f"{self.unused} that are not here"
        ]
        if self.changed:
            found.append(f"given       {self.changed} slices had another patient in the source")
        if self.without:
            found.append(
                f"doubtful    {file} does not name {', '.join(self.without[:3])}"
                f"{', …' if len(self.without) > 3 else ''}; the patient of "
                f"{self.groups.count(None)} slices is not known"
            )
        return found


@dataclass(frozen=True)
class Source:
    """A folder as an importer sees it.

    Attributes:
        records: In the order in which reading them is fast.
        categories: Names of all categories, in the order of their ids.
        skipped: Path → why it is left out.
        header: Other top-level keys of the JSON file, such as `licenses`.
        given: What a CSV file said of the patients, which the records have.
    """

    records: list[Record]
    categories: list[str]
    skipped: dict[Path, str] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    given: Given | None = None


@dataclass(frozen=True)
class Options:
    """How volumes become slices; other formats have slices already.

    Attributes:
        axis: One of `AXES`: across which slices are cut; "auto" for each volume's own, axial
            unless another is by far the coarsest, as the service cuts it.
        slices: "all", "tumour" (those with a label) or "every:N".
        modality: End of the file name of the volume to read, such as "t1ce" or "0003".

    Raises:
        InputError: `axis` or `slices` is none of these.
    """

    axis: str = "auto"
    slices: str = "all"
    modality: str | None = None

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


def annotate(masks: dict[str, Mask]) -> Labels:
    """Annotations with lossless run lengths, of the masks that are not empty.

    Args:
        masks: Category's name → bool, shape (H, W).
    """
    labels = []
    for name, mask in masks.items():
        if mask.any():
            rle = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotation = {
                "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
                "area": int(rle_tools.area(rle)),
                "bbox": rle_tools.toBbox(rle).tolist(),
                "iscrowd": 0,
            }
            labels.append((name, annotation))
    return labels


def pick(slices: Callable[[], list[Grey]], number: int) -> Grey:
    """One of the slices that a function reads, for a record's `load`."""
    return slices()[number]


def visible_files(folder: Path) -> list[Path]:
    """All files under a folder, sorted, without hidden ones (macOS leaves `._NAME` in archives)."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(p.startswith((".", "__MACOSX")) for p in path.relative_to(folder).parts)
    )


def refuse_links_out(folder: Path) -> None:
    """Raises InputError if something under a folder is no file or folder that lies in it.

    Links to folders are refused since they may go round in circles.
    """
    for home, folders, files in os.walk(folder):
        for path in (Path(home, name) for name in sorted(folders + files)):
            if path.is_symlink() and leads_out(path, folder):
                wrong = f"is a link that leads out of {folder}"
            elif not os.path.isfile(path) and (path.is_symlink() or not path.is_dir()):
                wrong = "is neither a file nor a folder (a pipe, or a link to a folder or nowhere)"
            else:
                continue
            raise InputError(f"{printable(str(path))}: {wrong}; copy the file here, or remove it")


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
