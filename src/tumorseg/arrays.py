"""From the manifest to training-ready arrays: grey slices and masks on one grid, memory-mapped."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tumorseg import coco
from tumorseg.errors import InputError
from tumorseg.preprocess import Mask, mask_to_grid, to_grey, to_grid

ARRAYS = Path("artifacts/augment/arrays")


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


def build_arrays(manifest: pd.DataFrame, data: Path, size: int, folder: Path = ARRAYS) -> None:
    """Writes `<split>_images.npy` and `<split>_masks.npy` for each split.

    Args:
        manifest: As `tumorseg.manifest.build_manifest` returns it, without problems.
        data: The folder to which the manifest's paths are relative.
        size: The side S of the grid, in pixels.
        folder: Where to; replaced as a whole once everything is written.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for split in coco.SPLITS:
        rows = manifest[manifest["split"] == split]
        images, masks = (
            np.lib.format.open_memmap(
                unfinished / f"{split}_{kind}.npy", "w+", np.uint8, (len(rows), size, size)
            )
            for kind in ("images", "masks")
        )
        with ThreadPoolExecutor() as pool:
            greys = pool.map(lambda path: to_grid(read_slice(data / path), size), rows["path"])
            for index, (grey, mask) in enumerate(zip(greys, true_masks(rows), strict=True)):
                images[index] = grey
                masks[index] = mask_to_grid(mask, size)
        images.flush()
        masks.flush()
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


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
