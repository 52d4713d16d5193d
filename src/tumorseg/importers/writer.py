"""From an index of slices to the project's layout: splits, summary, and the files themselves."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.data import coco
from tumorseg.data.splits import assign_splits
from tumorseg.importers.reading import Record, Source

SHOWN = 10  # so many skipped files are named


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
        records, doubts = self.source.records, list(self.source.doubts)
        drawn = any(record.split is None for record in records)
        by = "divided here, a patient's slices together" if drawn else "as in the source"
        counts = ", ".join(f"{split} {self.splits.count(split)}" for split in coco.SPLITS)
        distances = sorted(distance for record in records for distance in record.spacing or ())
        spacing = f"{distances[0]:.2f} to {distances[-1]:.2f} mm" if distances else "not known"
        lone = sum(record.group is None for record in records)
        if lone and drawn:
            doubts.append(
                f"the patients of {lone} slices are not known, so one patient may be in two splits"
            )
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
        return "\n".join([*lines, *(f"doubtful    {doubt}" for doubt in doubts)])


def use_unique_names(records: Sequence[Record]) -> list[Record]:
    """Gives records file names of letters, digits, `.`, `_` and `-` that differ in any case.

    Digits that begin a name are read as the place in a scan that all images share. Where groups
    are known, each has its own scan, so such a name gets a letter in front.
    """
    taken: set[str] = set()
    result = []
    for record in records:
        stem, dot, suffix = record.name.rpartition(".")
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:150].strip("-.") or "slice"
        if record.group is not None and stem[0].isdigit():
            stem = f"s{stem}"
        name, copy = f"{stem}{dot}{suffix}", 1
        while name.lower() in taken:
            copy += 1
            name = f"{stem}-{copy}{dot}{suffix}"
        taken.add(name.lower())
        result.append(replace(record, name=name))
    return result


def assign(folder: Path, records: Sequence[Record]) -> list[str]:
    """The split of each record.

    Where the source has no splits, groups go as wholes, and a record without a group is one of its
    own.

    Args:
        folder: The source, for messages.
        records: Length N, at least 1.

    Returns:
        train, valid or test, length N; none of them is empty.

    Raises:
        InputError: The source leaves a split empty, or has fewer groups than there are splits.
    """
    stated = [record.split for record in records if record.split is not None]
    if stated:
        if len(stated) < len(records) or set(stated) != set(coco.SPLITS):
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
    if (count := len(set(groups))) < len(coco.SPLITS):
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
    documents = {split: coco.Document(dict(source.header)) for split in coco.SPLITS}
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
