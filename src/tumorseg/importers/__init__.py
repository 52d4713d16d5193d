"""From the formats that people have to the project's layout, behind one interface.

An importer is a module with LOOKS_FOR (what makes a folder fit, in words), fits(folder) (whether
it looks like this format, without decoding a pixel) and read(folder, options), which indexes its
slices as a `Source`. Splits, writing and the summary are the same for all. To add one, write such
a module and list it in `IMPORTERS`.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pandas as pd
from PIL import Image
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.data.coco import ANNOTATIONS, SPLITS, Document, extend, printable, read_document
from tumorseg.data.splits import assign_splits, count_patients
from tumorseg.importers import coco_folder, dicom, mask_folder, matlab, nifti
from tumorseg.importers.groups import give
from tumorseg.importers.reading import Options, Record, Source, refuse_links_out

__all__ = ["IMPORTERS", "Options", "Summary", "detect", "import_folder", "plan", "read", "write"]

IMPORTERS: dict[str, ModuleType] = {
    "coco": coco_folder,
    "masks": mask_folder,
    "nifti": nifti,
    "dicom": dicom,
    "matlab": matlab,
}
SHOWN = 10  # so many skipped files are named in a summary


@dataclass(frozen=True)
class Summary:
    """What an import does or would do.

    Attributes:
        kind: The importer's name.
        source: What is imported.
        splits: train, valid or test, of each record.
    """

    kind: str
    source: Source
    splits: list[str]

    @property
    def images(self) -> int:
        """The number of slices in all splits."""
        return len(self.splits)

    @property
    def groups(self) -> int:
        """The number of patients or series known."""
        return len({record.group for record in self.source.records} - {None})

    def __str__(self) -> str:
        """One line a fact."""
        records = self.source.records
        drawn = any(record.split is None for record in records)
        by = "divided here, a patient's slices together" if drawn else "as in the source"
        counts = ", ".join(f"{split} {self.splits.count(split)}" for split in SPLITS)
        distances = sorted(distance for record in records for distance in record.spacing or ())
        spacing = f"{distances[0]:.2f} to {distances[-1]:.2f} mm" if distances else "not known"
        lone = sum(record.group is None for record in records)
        lines = [
            f"format      {self.kind}",
            f"slices      {counts} ({by})",
            f"patients    {self.groups or 'not known'}",
            f"categories  {', '.join(self.source.categories) or 'none'}",
            f"spacing     {spacing}",
        ]
        skipped = [f"skipped     {path}: {why}" for path, why in self.source.skipped.items()]
        lines += skipped[:SHOWN]
        if len(skipped) > SHOWN:
            lines.append(f"skipped     … and {len(skipped) - SHOWN} more")
        if self.source.given:
            lines += self.source.given.lines()
        placed = pd.DataFrame(
            {"group": [record.group for record in records], "split": self.splits}, dtype="str"
        )
        if several := len(placed.dropna().drop_duplicates()) - self.groups:
            in_train = count_patients(placed)["slices_with_patient_in_train"]
            shared = ", ".join(
                f"{number} of {self.splits.count(split)} slices of {split}"
                for split, number in in_train.items()
            )
            lines.append(
                f"doubtful    patients are in several splits of the source ({several} times): "
                f"{shared} have their patient in train"
            )
        if lone and drawn:
            why = f"the patients of {lone} slices are not known, so one may be in two splits"
            lines.append(f"doubtful    {why}")
        return "\n".join(lines)


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


def read(
    folder: Path, kind: str, options: Options | None = None, groups: Path | None = None
) -> Source:
    """Indexes a folder in any known format; its records have unique names.

    Args:
        folder: The source.
        kind: One of `IMPORTERS`.
        options: How to cut volumes.
        groups: A CSV file of patients, see `tumorseg.importers.groups.give`.

    Raises:
        InputError: The folder cannot be imported, or the CSV file does not fit it.
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
    given = give(groups, source.records) if groups else None
    source.records[:] = _use_unique_names(source.records)
    if given:  # not before: the numbers of such files run through all patients, names may stay
        pairs = zip(source.records, given.groups, strict=True)
        source.records[:] = [replace(record, group=group) for record, group in pairs]
    return replace(source, given=given)


def plan(
    folder: Path,
    kind: str | None = None,
    options: Options | None = None,
    groups: Path | None = None,
) -> Summary:
    """What importing a folder would do; writes nothing.

    Args:
        folder: The source.
        kind: One of `IMPORTERS`; None to look.
        options: How to cut volumes.
        groups: As for `read`.

    Raises:
        InputError: As `read`.
    """
    kind = detect(folder) if kind is None else kind
    source = read(folder, kind, options, groups)
    if kind == "coco" and coco_folder.is_layout(folder):
        splits = [str(record.split) for record in source.records]
    else:
        splits = _assign(folder, source.records)
    return Summary(kind, source, splits)


def import_folder(
    folder: Path,
    destination: Path,
    kind: str | None = None,
    options: Options | None = None,
    groups: Path | None = None,
) -> Summary:
    """Writes a folder in the project's layout: train, valid and test with COCO annotations.

    Args:
        folder: The source; one that has the layout is copied byte for byte, but for `groups`.
        destination: Must not exist; appears only once it is complete.
        kind: One of `IMPORTERS`; None to look.
        options: How to cut volumes.
        groups: As for `read`.

    Returns:
        What was done.

    Raises:
        InputError: The folder cannot be imported, or the destination exists.
    """
    if destination.exists():
        raise InputError(f"{destination}: exists already; remove it or choose another folder")
    summary = plan(folder, kind, options, groups)
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=destination.parent) as scratch:
        complete = Path(scratch, destination.name)
        if summary.kind == "coco" and coco_folder.is_layout(folder):
            _copy(folder, complete)
            if groups:
                _set_groups(summary.source, complete)
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


def _set_groups(source: Source, layout: Path) -> None:
    """Writes the groups of records into the JSON files of a copied folder."""
    for split in SPLITS:
        groups = {
            str(PurePosixPath(record.entry["file_name"])): {"group": record.group}
            for record in source.records
            if record.split == split and record.group is not None
        }
        document = read_document(layout / split / ANNOTATIONS)
        extend(document, groups)
        Document(document).save(layout / split)


def _use_unique_names(records: Sequence[Record]) -> list[Record]:
    """Gives records file names of letters, digits, `.`, `_` and `-` that differ in any case.

    Digits that begin a name are read as the place in a scan that all images share. Where groups
    are known, each has its own scan, so such a name gets a letter in front.
    """
    taken: set[str] = set()
    result = []
    for record in records:
        stem, suffix = os.path.splitext(record.name)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:150].strip("-.") or "slice"
        if record.group is not None and stem[0].isdigit():
            stem = f"s{stem}"
        name, copy = f"{stem}{suffix}", 1
        while name.lower() in taken:
            copy += 1
            name = f"{stem}-{copy}{suffix}"
        taken.add(name.lower())
        result.append(replace(record, name=name))
    return result


def _assign(folder: Path, records: Sequence[Record]) -> list[str]:
    """The split of each record; none is empty, and where the source has none no group is divided.

    Raises:
        InputError: The source leaves a split empty, or has fewer groups than there are splits.
    """
    stated = [record.split for record in records if record.split is not None]
    if stated:
        if len(stated) < len(records) or set(stated) != set(SPLITS):
            raise InputError(
                f"{folder}: has slices in {', '.join(sorted(set(stated)))}, and none in the other "
                "splits, or some outside; it needs train, valid and test with all slices, or none "
                "of these folders and the slices are divided here"
            )
        return stated
    groups = [
        f"slice {record.name}" if record.group is None else f"group {record.group}"
        for record in records
    ]
    if (count := len(set(groups))) < len(SPLITS):
        raise InputError(
            f"{folder}: has only {count} patient{'s' if count > 1 else ''}, and one must not be in "
            "two of train, valid and test; add patients, or sort the slices into three such folders"
        )
    categories = [sorted({name for name, _ in record.labels}) for record in records]
    return assign_splits(groups, ["+".join(names) or "none" for names in categories])


def write(source: Source, splits: Sequence[str], folder: Path) -> dict[str, str]:
    """Writes train, valid and test, each with its images and `_annotations.coco.json`.

    One slice is in memory at a time, beside the entries of the JSON files.

    Args:
        source: What to write.
        splits: train, valid or test for each record.
        folder: Is made; must not exist.

    Returns:
        Name → why, of the slices that cannot be read; they are left out.
    """
    documents = {split: Document(dict(source.header)) for split in SPLITS}
    for split, document in documents.items():
        (folder / split).mkdir(parents=True)
        for category in source.categories:
            document.category(category)
    unread: dict[str, str] = {}
    progress = tqdm(source.records, "writing", unit="slice", disable=None)
    for record, split in zip(progress, splits, strict=True):
        try:
            image = record.load()
        except InputError as error:
            unread[record.name] = str(error)
            continue
        path = folder / split / record.name
        entry: dict[str, Any] = record.entry | {"file_name": record.name}
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            Image.fromarray(image).save(path)
            entry["height"], entry["width"] = image.shape
        known = {"group": record.group, "slice_number": record.number, "spacing_mm": record.spacing}
        entry |= {key: value for key, value in known.items() if value is not None}
        documents[split].add(entry, record.labels)
    for split, document in documents.items():
        document.save(folder / split)
    return unread
