"""From a COCO folder to the manifest: one row an image, and all that later stages need of it."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from pycocotools import mask as rle_tools

from tumorseg import coco
from tumorseg.errors import InputError
from tumorseg.files import atomic_path
from tumorseg.preprocess import to_grey

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
# At least this share of its bounding box makes an annotation a rectangle.
RECTANGLE_FILL = 0.99


def build_manifest(data: Path) -> pd.DataFrame:
    """Reads a folder of splits into a table.

    Args:
        data: Holds `train/`, `valid/` and `test/`, each with images and `_annotations.coco.json`.

    Returns:
        One row an image, sorted by split and path, with the columns

        - `path` relative to `data`, `split`, `sha256` of the file, `width` and `height` in pixels,
          `mode` as Pillow names it;
        - `annotations` (their number), `categories` (names, comma-separated), `mask_rle` (union
          of the annotations as compressed COCO run lengths), `tumour_fraction` of the image,
          `box_fill` (area over bounding box, of the least box-like annotation; NaN without one);
        - `slice_number` (the digits that begin the file name, if any),
          `neighbour_in_other_split`, `duplicate_in_other_split`;
        - `problem`: why the image cannot be used, or None.

    Raises:
        InputError: A split or its JSON is missing or unusable.
    """
    missing = [split for split in coco.SPLITS if not (data / split).is_dir()]
    if missing:
        raise InputError(
            f"{data}: has no folder {', '.join(missing)}; it needs train, valid and test, each "
            f"with images and {coco.ANNOTATIONS}"
        )
    listed = [(split, image) for split in coco.SPLITS for image in _split(data / split)]
    with ThreadPoolExecutor() as pool:  # hashing and decoding release the interpreter's lock
        rows = list(pool.map(lambda item: _row(data, *item), listed))
    table = pd.DataFrame(rows)
    if table.empty:
        raise InputError(f"{data}: lists no image at all")
    return _compare_splits(table)


def _split(folder: Path) -> list[coco.LabelledImage]:
    images = coco.read_split(folder)
    names = {image.file_name for image in images}
    unlisted = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name not in names
    )
    # Size 0 marks what no JSON describes.
    return images + [coco.LabelledImage(name, 0, 0) for name in unlisted]


def _row(data: Path, split: str, image: coco.LabelledImage) -> dict[str, Any]:
    path = data / split / image.file_name
    digits = re.match(r"\d+", image.file_name)
    row: dict[str, Any] = {
        "path": f"{split}/{image.file_name}",
        "split": split,
        "sha256": None,
        "width": image.width,
        "height": image.height,
        "mode": None,
        "annotations": len(image.annotations),
        "categories": ",".join(
            sorted({str(annotation.get("category_id")) for annotation in image.annotations})
        ),
        "mask_rle": None,
        "tumour_fraction": 0.0,
        "box_fill": float("nan"),
        "slice_number": int(digits[0]) if digits else None,
        "problem": None,
    }
    try:
        row["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path) as picture:
            row["mode"] = picture.mode
            height, width = to_grey(picture).shape
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return row | {"problem": f"cannot be read: {error.__class__.__name__}: {error}"}
    if image.width == 0:
        return row | {"problem": f"is not listed in {coco.ANNOTATIONS}"}
    if (image.width, image.height) != (width, height):
        return row | {
            "problem": f"is {width}×{height}, but its JSON says {image.width}×{image.height}"
        }
    try:
        rle = coco.image_rle(image)
        fills = [
            coco.box_fill(annotation, coco.annotation_rle(annotation, height, width))
            for annotation in image.annotations
        ]
    except ValueError as error:
        return row | {"problem": str(error)}
    area = int(rle_tools.area({"size": [height, width], "counts": rle.encode()}))
    return row | {
        "mask_rle": rle,
        "tumour_fraction": area / (height * width),
        "box_fill": min(fills, default=float("nan")),
    }


def _compare_splits(table: pd.DataFrame) -> pd.DataFrame:
    splits_of_hash = table.groupby("sha256")["split"].agg(set).to_dict()
    splits_of_number = table.dropna(subset="slice_number").groupby("slice_number")["split"].agg(set)
    neighbours = splits_of_number.to_dict()

    def elsewhere(splits: set[str], own: str) -> bool:
        return bool(splits - {own})

    table["slice_number"] = table["slice_number"].astype("Int64")
    table["neighbour_in_other_split"] = [
        not pd.isna(number)
        and any(elsewhere(neighbours.get(number + step, set()), own) for step in (-1, 0, 1))
        for number, own in zip(table["slice_number"], table["split"], strict=True)
    ]
    table["duplicate_in_other_split"] = [
        elsewhere(splits_of_hash.get(digest, set()), own)
        for digest, own in zip(table["sha256"], table["split"], strict=True)
    ]
    return table


def save_manifest(table: pd.DataFrame, path: Path) -> None:
    """Writes the manifest as Parquet."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def load_manifest(path: Path = Path("artifacts/validate/manifest.parquet")) -> pd.DataFrame:
    """Reads a manifest that validate wrote.

    Raises:
        InputError: There is none.
    """
    if not path.exists():
        raise InputError(f"{path}: is missing; run `dvc repro validate` first")
    return pd.read_parquet(path)
