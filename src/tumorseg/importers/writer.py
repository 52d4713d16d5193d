"""From an index of slices to the project's layout: splits, summary, and the files themselves."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.data import coco
from tumorseg.data.splits import assign_splits
from tumorseg.importers.reading import Copied, Drawn, Record, Source

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
        # Two passes: which slices hold a tumour decides the sides, so masks are read for that too.
        mine = "divided here, a patient's slices together; masks are read twice for it"
        by = mine if self.drawn else "as in the source"
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


def summarise(kind: str, source: Source, sides: Sequence[str]) -> Summary:
    """Counts what a source holds, given the side of each of its records."""
    records = source.records
    groups = {record.group for record in records if record.group is not None}
    counts = Counter(sides)
    spacings = {record.spacing for record in records if record.spacing is not None}
    distances = [distance for spacing in spacings for distance in spacing]
    doubts = list(source.doubts)
    lone = sum(record.group is None for record in records)
    drawn = any(record.split is None for record in records)
    if lone and drawn:
        doubts.append(
            f"the patients of {lone} slices are not known, so one patient may be in two splits"
        )
    placed = {(r.group, side) for r, side in zip(records, sides, strict=True)}
    shared = Counter(group for group, _ in placed if group is not None)
    if several := sorted(group for group, splits in shared.items() if splits > 1):
        doubts.append(
            f"{len(several)} patients are in several splits of the source, such as {several[0]}"
        )
    if any(max(spacing) > 1.1 * min(spacing) for spacing in spacings):
        doubts.append("some slices have pixels that are not square; they are not resampled")
    return Summary(
        kind=kind,
        slices={split: counts[split] for split in coco.SPLITS},
        drawn=drawn,
        groups=len(groups),
        categories=[str(category.get("name")) for category in source.categories],
        spacing=(min(distances), max(distances)) if distances else None,
        skipped=source.skipped,
        doubts=doubts,
    )


def assign(folder: Path, records: Sequence[Record]) -> list[str]:
    """The side of each record.

    Where the source has no splits, groups go as wholes, and a record without a group is one of its
    own. This first pass over the records asks each only for the categories in it.

    Args:
        folder: The source, for messages.
        records: Length N, at least 1.

    Returns:
        train, valid or test, length N; none of them is empty.

    Raises:
        InputError: The source leaves a split empty, or has fewer groups than there are splits.
    """
    stated = [record.split for record in records if record.split is not None]
    if len(stated) == len(records):
        if missing := [split for split in coco.SPLITS if split not in stated]:
            raise InputError(
                f"{folder}: has nothing for {', '.join(missing)}; it needs train, valid and test, "
                "or none of them and the slices are divided here"
            )
        return stated
    if stated:
        outside = next(record.name for record in records if record.split is None)
        raise InputError(
            f"{folder}: {outside} lies outside train, valid and test, which others lie in; move it"
        )
    groups = [
        f"slice {record.name}" if record.group is None else f"group {record.group}"
        for record in records
    ]
    if (count := len(set(groups))) < len(coco.SPLITS):
        raise InputError(
            f"{folder}: has only {count} patient{'s' if count > 1 else ''}, and one must not be in "
            "two of train, valid and test; add patients, or sort the slices into three such folders"
        )
    progress = tqdm(records, "looking for tumours", unit="slice", disable=None)
    strata = ["+".join(sorted(record.categories())) or "none" for record in progress]
    return assign_splits(groups, strata)


def write(source: Source, sides: Sequence[str], folder: Path) -> None:
    """Writes train, valid and test, each with its images and `_annotations.coco.json`.

    One slice is in memory at a time, beside the entries of the JSON files.

    Args:
        source: What to write.
        sides: train, valid or test for each record.
        folder: Is made; must not exist.
    """
    documents: dict[str, dict[str, Any]] = {
        split: source.header | {"categories": source.categories, "images": [], "annotations": []}
        for split in coco.SPLITS
    }
    for split in coco.SPLITS:
        (folder / split).mkdir(parents=True)
    ids = {str(category.get("name")): category.get("id") for category in source.categories}
    numbers = itertools.count(1)
    progress = tqdm(source.records, "writing", unit="slice", disable=None)
    for image_id, (record, side) in enumerate(zip(progress, sides, strict=True), start=1):
        entry, annotations = save(record, folder / side, image_id, ids, numbers)
        documents[side]["images"].append(entry)
        documents[side]["annotations"] += annotations
    for split, document in documents.items():
        path = folder / split / coco.ANNOTATIONS
        path.write_text(json.dumps(document), encoding="utf-8")


def save(
    record: Record, folder: Path, image_id: int, ids: dict[str, Any], numbers: Iterator[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads one slice and writes its image.

    Args:
        record: The slice.
        folder: Receives the image.
        image_id: For the entry of a slice that has none yet.
        ids: Category's name → id.
        numbers: Ids for annotations that have none yet.

    Returns:
        Its entry under `images`, and those under `annotations`.

    Raises:
        InputError: The slice cannot be read.
    """
    loaded = record.load()
    path = folder / record.name
    if isinstance(loaded, Copied):
        path.write_bytes(loaded.image)
        entry, annotations = loaded.entry | {"file_name": record.name}, loaded.annotations
    else:
        Image.fromarray(loaded.grey).save(path)
        height, width = loaded.grey.shape
        entry = {"id": image_id, "file_name": record.name, "height": height, "width": width}
        annotations = [
            {"id": next(numbers), "image_id": image_id, "category_id": ids[name]} | shape
            for name, shape in _shapes(loaded)
        ]
    known = {"group": record.group, "slice_number": record.number, "spacing_mm": record.spacing}
    return entry | {key: value for key, value in known.items() if value is not None}, annotations


def _shapes(slice_: Drawn) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, mask in slice_.masks.items():
        if mask.any():
            rle = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
            yield (
                name,
                {
                    "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
                    "area": int(rle_tools.area(rle)),
                    "bbox": rle_tools.toBbox(rle).tolist(),
                    "iscrowd": 0,
                },
            )


def copy(layout: Path, folder: Path) -> None:
    """Copies a folder that has the layout already, byte for byte.

    Raises:
        InputError: A file cannot be read or written.
    """
    try:
        for split in coco.SPLITS:
            # copyfile, not copy2: a read-only source must not make a folder that nobody can replace
            shutil.copytree(layout / split, folder / split, copy_function=shutil.copyfile)
            (folder / split).chmod(0o755)
    except shutil.Error as error:  # of a list with an entry a file
        name, _, why = error.args[0][0]
        raise InputError(f"{coco.printable(str(name))}: cannot be copied ({why})") from None
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be copied ({error.strerror})") from None
