"""From an index of slices to the project's layout: splits, summary, and the files themselves."""

import re
from collections import Counter
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
        slices: train, valid and test → number of slices.
        drawn: Whether the slices were divided here, as opposed to by the source.
        groups: Number of patients or series known.
        categories: Their names.
        spacing: Smallest and largest distance of rows or columns, in mm; None if none is known.
        skipped: Path → why it is left out.
        doubts: What the user should look at; one sentence each.
    """

    kind: str
    slices: dict[str, int]
    drawn: bool
    groups: int
    categories: list[str]
    spacing: tuple[float, float] | None
    skipped: dict[Path, str]
    doubts: list[str]

    @property
    def images(self) -> int:
        """The number of slices in all splits."""
        return sum(self.slices.values())

    def __str__(self) -> str:
        """One line a fact."""
        by = "divided here, a patient's slices together" if self.drawn else "as in the source"
        counts = ", ".join(f"{split} {count}" for split, count in self.slices.items())
        low, high = self.spacing or (0.0, 0.0)
        spacing = f"{low:.2f} mm" if low == high else f"{low:.2f} to {high:.2f} mm"
        lines = [
            f"format      {self.kind}",
            f"slices      {counts} ({by})",
            f"patients    {self.groups or 'not known'}",
            f"categories  {', '.join(self.categories) or 'none'}",
            f"spacing     {spacing if self.spacing else 'not known'}",
        ]
        lines += [f"skipped     {path}: {why}" for path, why in list(self.skipped.items())[:SHOWN]]
        if len(self.skipped) > SHOWN:
            lines.append(f"skipped     … and {len(self.skipped) - SHOWN} more")
        lines += [f"doubtful    {doubt}" for doubt in self.doubts]
        return "\n".join(lines)


def summarise(kind: str, source: Source, splits: Sequence[str]) -> Summary:
    """Counts what a source holds, given the split of each of its records."""
    records = source.records
    counts = Counter(splits)
    distances = {distance for record in records for distance in record.spacing or ()}
    doubts = list(source.doubts)
    lone = sum(record.group is None for record in records)
    drawn = any(record.split is None for record in records)
    if lone and drawn:
        doubts.append(
            f"the patients of {lone} slices are not known, so one patient may be in two splits"
        )
    placed = {(r.group, split) for r, split in zip(records, splits, strict=True)}
    splits_of = Counter(group for group, _ in placed if group is not None)
    if several := sorted(group for group, count in splits_of.items() if count > 1):
        doubts.append(
            f"{len(several)} patients are in several splits of the source, such as {several[0]}"
        )
    return Summary(
        kind=kind,
        slices={split: counts[split] for split in coco.SPLITS},
        drawn=drawn,
        groups=len(splits_of),
        categories=source.categories,
        spacing=(min(distances), max(distances)) if distances else None,
        skipped=source.skipped,
        doubts=doubts,
    )


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
