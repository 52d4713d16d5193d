"""From the manifest to training-ready arrays: grey slices and masks on one grid, memory-mapped."""

import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tumorseg.core.errors import InputError
from tumorseg.core.files import new_array
from tumorseg.data import coco
from tumorseg.imaging.preprocess import Mask, mask_to_grid, to_grey, to_grid

ARRAYS = Path("artifacts/augment/arrays")
DIGEST = "manifest.sha256"  # in the same folder
BATCH = 64  # slices read at a time


@dataclass(frozen=True)
class Slices:
    """The slices of one split, in the manifest's order.

    Attributes:
        images: uint8, shape (N, S, S), memory-mapped.
        masks: 0 or 1, uint8, shape (N, S, S), memory-mapped.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]


def read_slice(path: Path) -> NDArray[np.uint8]:
    """One image file as grey values, uint8, shape (H, W)."""
    with Image.open(path) as picture:
        return to_grey(picture)


def true_masks(rows: pd.DataFrame) -> Iterator[Mask]:
    """The masks of manifest rows at the images' own sizes: bool, (H, W) each."""
    for rle, height, width in zip(rows["mask_rle"], rows["height"], rows["width"], strict=True):
        yield coco.decode(rle, int(height), int(width))


def sizes(rows: pd.DataFrame) -> list[tuple[int, int]]:
    """Height and width of the images of manifest rows, in pixels."""
    return [(int(h), int(w)) for h, w in zip(rows["height"], rows["width"], strict=True)]


def build_arrays(manifest: pd.DataFrame, data: Path, size: int, folder: Path = ARRAYS) -> None:
    """Writes `<split>_images.npy` and `<split>_masks.npy` for each split.

    Args:
        manifest: As the split stage writes it, without problems.
        data: The folder to which the manifest's paths are relative.
        size: The side S of the grid, in pixels.
        folder: Where to; replaced as a whole once everything is written.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        for split in coco.SPLITS:
            rows = manifest[manifest["split"] == split]
            images = new_array(unfinished / f"{split}_images.npy", (len(rows), size, size))
            masks = new_array(unfinished / f"{split}_masks.npy", (len(rows), size, size))
            # In batches, since a pool would read ahead of the writing and hold what it has read.
            for start in range(0, len(rows), BATCH):
                batch = rows.iloc[start : start + BATCH]
                greys = pool.map(read_slice, [data / path for path in batch["path"]])
                for index, grey in enumerate(greys, start):
                    images[index] = to_grid(grey, size)
                for index, mask in enumerate(true_masks(batch), start):
                    masks[index] = mask_to_grid(mask, size)
            images.flush()
            masks.flush()
    (unfinished / DIGEST).write_text(_digest(manifest))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def check_made_of(manifest: pd.DataFrame, folder: Path = ARRAYS) -> None:
    """Checks that rows of a manifest are rows of the arrays.

    Raises:
        InputError: The arrays are of other slices, labels, splits or of another order.
    """
    path = folder / DIGEST
    if not path.exists() or path.read_text() != _digest(manifest):
        raise InputError(f"{folder}: is of another manifest; run `dvc repro augment`")


def _digest(manifest: pd.DataFrame) -> str:
    """Of what decides which slice and label is where."""
    columns = manifest[["split", "sha256", "height", "width", "mask_rle"]]
    text = columns.to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def load_slices(split: str, folder: Path = ARRAYS) -> Slices:
    """Opens the arrays of one split, `train`, `valid` or `test`.

    Raises:
        InputError: They are missing or damaged.
    """
    try:
        return Slices(
            np.load(folder / f"{split}_images.npy", mmap_mode="r"),
            np.load(folder / f"{split}_masks.npy", mmap_mode="r"),
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: has no usable arrays ({error}); run `dvc repro augment`"
        ) from None
