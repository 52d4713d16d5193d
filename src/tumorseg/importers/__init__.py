"""From the formats that people have to the project's layout, behind one interface.

An importer is a module that says whether it fits a folder and reads an index of its slices; what
follows (sides, writing, summary) is the same for all. To add one, write such a module and list it
in `IMPORTERS`.
"""

import tempfile
from pathlib import Path
from typing import Protocol

from tumorseg.core.errors import InputError
from tumorseg.importers import coco_folder, dicom, mask_folder, nifti
from tumorseg.importers.reading import Options, Source, refuse_links_out
from tumorseg.importers.writer import Summary, assign, copy, summarise, write

__all__ = ["IMPORTERS", "Options", "Summary", "detect", "import_folder", "plan"]


class Importer(Protocol):
    """What a module offers to be an importer."""

    @property
    def LOOKS_FOR(self) -> str:
        """What makes a folder fit, in words."""

    def fits(self, folder: Path) -> bool:
        """Whether the folder looks like this format, told without decoding a pixel."""

    def read(self, folder: Path, options: Options) -> Source:
        """Indexes the folder; raises InputError if something in it is wrong."""


IMPORTERS: dict[str, Importer] = {
    "coco": coco_folder,
    "masks": mask_folder,
    "nifti": nifti,
    "dicom": dicom,
}


def detect(folder: Path) -> str:
    """Which importer fits a folder.

    Raises:
        InputError: It is no folder, or none or several importers fit.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder")
    if coco_folder.is_layout(folder):  # ours, whatever else lies in it
        return "coco"
    found = [kind for kind, importer in IMPORTERS.items() if importer.fits(folder)]
    if len(found) > 1:
        raise InputError(f"{folder}: could be {' or '.join(found)}; say which with --format")
    if not found:
        wanted = "; ".join(f"{kind}: {each.LOOKS_FOR}" for kind, each in IMPORTERS.items())
        raise InputError(f"{folder}: holds nothing that can be imported; looked for {wanted}")
    return found[0]


def plan(folder: Path, kind: str | None = None, options: Options | None = None) -> Summary:
    """What importing a folder would do; writes nothing and decodes no image.

    Masks are read where the categories or the sides depend on them.

    Args:
        folder: The source.
        kind: One of `IMPORTERS`; None to look.
        options: How to cut volumes.

    Raises:
        InputError: The folder cannot be imported.
    """
    return _prepare(folder, kind, options)[2]


def import_folder(
    folder: Path, destination: Path, kind: str | None = None, options: Options | None = None
) -> Summary:
    """Writes a folder in the project's layout: train, valid and test with COCO annotations.

    Args:
        folder: The source.
        destination: Must not exist; appears only once it is complete.
        kind: One of `IMPORTERS`; None to look.
        options: How to cut volumes.

    Returns:
        What was done.

    Raises:
        InputError: The folder cannot be imported, or the destination exists.
    """
    if destination.exists():
        raise InputError(f"{destination}: exists already; remove it or choose another folder")
    source, sides, summary = _prepare(folder, kind, options)
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=destination.parent) as scratch:
        complete = Path(scratch, destination.name)
        if source.layout:
            copy(source.layout, complete)
        else:
            write(source, sides, complete)
        complete.rename(destination)
    return summary


def _prepare(
    folder: Path, kind: str | None, options: Options | None
) -> tuple[Source, list[str], Summary]:
    if kind is not None and kind not in IMPORTERS:
        raise InputError(f"--format {kind}: must be one of auto, {', '.join(IMPORTERS)}")
    if kind is None or not folder.is_dir():
        kind = detect(folder)
    refuse_links_out(folder)
    options = options or Options()
    if kind != "nifti" and options != Options():
        raise InputError(f"{folder}: is {kind}; --axis, --slices and --modality are for volumes")
    source = IMPORTERS[kind].read(folder, options)
    if not source.records and not source.layout:
        why = next((f" ({path}: {why})" for path, why in source.skipped.items()), "")
        raise InputError(f"{folder}: holds no slice that can be imported{why}")
    sides = (
        assign(folder, source.records)
        if not source.layout
        else [str(record.split) for record in source.records]
    )
    return source, sides, summarise(kind, source, sides)
