"""The project's layout, written slice by slice."""

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.data import coco
from tumorseg.importers.record import Copied, Drawn, Record, Source


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
    return entry | _known(record), annotations


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


def _known(record: Record) -> dict[str, Any]:
    extra = {
        "group": record.group,
        "slice_number": record.number,
        "spacing_mm": record.spacing,
    }
    return {key: value for key, value in extra.items() if value is not None}


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
