"""From the formats that people have to the project's layout, behind one interface.

An importer is a module with LOOKS_FOR (what makes a folder fit, in words), fits(folder) (whether
it looks like this format, without decoding a pixel) and read(folder, options), which indexes its
slices as a `Source`. Splits, writing and the summary are the same for all. To add one, write such
a module and list it in `IMPORTERS`.
"""

import shutil
import tempfile
from pathlib import Path
from types import ModuleType

from tumorseg.core.errors import InputError
from tumorseg.data.coco import ANNOTATIONS, SPLITS, printable
from tumorseg.importers import coco_folder, dicom, mask_folder, nifti
from tumorseg.importers.reading import Options, Source, refuse_links_out
from tumorseg.importers.writer import Summary, assign, use_unique_names, write

__all__ = ["IMPORTERS", "Options", "Summary", "detect", "import_folder", "plan", "read", "write"]

IMPORTERS: dict[str, ModuleType] = {
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
    if any((folder / split / ANNOTATIONS).is_file() for split in SPLITS):
        return "coco"  # whatever else lies in it
    found = [kind for kind, importer in IMPORTERS.items() if importer.fits(folder)]
    if len(found) > 1:
        raise InputError(f"{folder}: could be {' or '.join(found)}; say which with --format")
    if not found:
        wanted = "; ".join(f"{kind}: {each.LOOKS_FOR}" for kind, each in IMPORTERS.items())
        raise InputError(f"{folder}: holds nothing that can be imported; looked for {wanted}")
    return found[0]


def read(folder: Path, kind: str, options: Options | None = None) -> Source:
    """Indexes a folder in any known format; its records have unique names.

    Args:
        folder: The source.
        kind: One of `IMPORTERS`.
        options: How to cut volumes.

    Raises:
        InputError: The folder cannot be imported.
    """
    if kind not in IMPORTERS:
        raise InputError(f"--format {kind}: must be one of auto, {', '.join(IMPORTERS)}")
    refuse_links_out(folder)
    options = options or Options()
    if kind != "nifti" and options != Options():
        raise InputError(f"{folder}: is {kind}; --axis, --slices and --modality are for volumes")
    source: Source = IMPORTERS[kind].read(folder, options)
    if not source.records:
        why = next((f" ({path}: {why})" for path, why in source.skipped.items()), "")
        raise InputError(f"{folder}: holds no slice that can be imported{why}")
    source.records[:] = use_unique_names(source.records)
    return source


def plan(folder: Path, kind: str | None = None, options: Options | None = None) -> Summary:
    """What importing a folder would do; writes nothing.

    Args:
        folder: The source.
        kind: One of `IMPORTERS`; None to look.
        options: How to cut volumes.

    Raises:
        InputError: The folder cannot be imported.
    """
    kind = detect(folder) if kind is None else kind
    source = read(folder, kind, options)
    if kind == "coco" and coco_folder.is_layout(folder):
        splits = [str(record.split) for record in source.records]
    else:
        splits = assign(folder, source.records)
    return Summary(kind, source, splits)


def import_folder(
    folder: Path, destination: Path, kind: str | None = None, options: Options | None = None
) -> Summary:
    """Writes a folder in the project's layout: train, valid and test with COCO annotations.

    Args:
        folder: The source; one that has the layout is copied byte for byte.
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
    summary = plan(folder, kind, options)
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=destination.parent) as scratch:
        complete = Path(scratch, destination.name)
        if summary.kind == "coco" and coco_folder.is_layout(folder):
            _copy(folder, complete)
        elif unread := write(summary.source, summary.splits, complete):
            raise InputError(f"{next(iter(unread.values()))} ({len(unread)} such in all)")
        complete.rename(destination)
    return summary


def _copy(layout: Path, folder: Path) -> None:
    """Copies a folder that has the layout already; raises InputError if a file cannot be read."""
    try:
        for split in SPLITS:
            # copyfile, not copy2: a read-only source must not make a folder that nobody can replace
            shutil.copytree(layout / split, folder / split, copy_function=shutil.copyfile)
            (folder / split).chmod(0o755)
    except shutil.Error as error:  # of a list with an entry a file
        name, _, why = error.args[0][0]
        raise InputError(f"{printable(str(name))}: cannot be copied ({why})") from None
