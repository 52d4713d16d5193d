"""From the manifest to training-ready arrays: grey slices and masks on one grid, memory-mapped."""

import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tumorseg.core.errors import InputError
from tumorseg.core.files import new_array
from tumorseg.data import coco
from tumorseg.data.memory import Memory
from tumorseg.imaging.preprocess import Mask, mask_to_grid, to_grey, to_grid

ARRAYS = Path("artifacts/augment/arrays")
MADE_OF = "manifest.sha256"  # in the same folder
MEMORY = Path(".state/grids.db")
AT_ONCE = 64  # slices in flight
VERSION = 1  # of the preprocessing; another number forgets what was remembered


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


def build_arrays(
    manifest: pd.DataFrame, data: Path, size: int, folder: Path = ARRAYS, memory: Path = MEMORY
) -> None:
    """Writes `<split>_images.npy` and `<split>_masks.npy` for each split.

    Args:
        manifest: As the split stage writes it, without problems.
        data: The folder to which the manifest's paths are relative.
        size: The side S of the grid, in pixels.
        folder: Where to; replaced as a whole once everything is written.
        memory: Remembers the grids of files and labels, so that only changed ones are made anew.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with Memory(memory, f"grids_{VERSION}") as store, ThreadPoolExecutor() as pool:

        def grids(row: Any) -> tuple[bytes, bytes]:
            return _image_grid(row, data, size, store), _mask_grid(row, size, store)

        for split in coco.SPLITS:
            rows = manifest[manifest["split"] == split]
            images, masks = (
                new_array(unfinished / f"{split}_{kind}.npy", (len(rows), size, size))
                for kind in ("images", "masks")
            )
            waiting = enumerate(rows.itertuples())
            # Batches, since a pool would run ahead of the writing and hold what it has read.
            while batch := list(islice(waiting, AT_ONCE)):
                found = pool.map(grids, [row for _, row in batch])
                for (index, _), (image, mask) in zip(batch, found, strict=True):
                    images[index] = np.frombuffer(image, np.uint8).reshape(size, size)
                    masks[index] = np.frombuffer(mask, np.uint8).reshape(size, size)
            images.flush()
            masks.flush()
    (unfinished / MADE_OF).write_text(_digest(manifest))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def check_made_of(manifest: pd.DataFrame, folder: Path = ARRAYS) -> None:
    """Whoever takes rows of a manifest for rows of the arrays asks this first.

    Raises:
        InputError: The arrays are of other slices, labels, sides or of another order.
    """
    try:
        known = (folder / MADE_OF).read_text()
    except OSError:
        known = ""
    if known != _digest(manifest):
        raise InputError(f"{folder}: is of another manifest; run `dvc repro augment`")


def _digest(manifest: pd.DataFrame) -> str:
    """Of what decides which slice and label is where."""
    columns = manifest[["split", "sha256", "height", "width", "mask_rle"]]
    told = columns.to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(told.encode()).hexdigest()


def _image_grid(row: Any, data: Path, size: int, store: Memory) -> bytes:
    key = f"image {size} {row.sha256}"
    if (known := store.get(key)) is None:
        known = to_grid(read_slice(data / row.path), size).tobytes()
        store.put(key, known)
    return known


def _mask_grid(row: Any, size: int, store: Memory) -> bytes:
    label = hashlib.sha256(row.mask_rle.encode()).hexdigest()
    key = f"mask {size} {row.height}x{row.width} {label}"
    if (known := store.get(key)) is None:
        mask = coco.decode(row.mask_rle, int(row.height), int(row.width))
        known = mask_to_grid(mask, size).tobytes()
        store.put(key, known)
    return known


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
