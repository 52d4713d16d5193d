"""Controls: what a method that has learnt nothing scores. A result that does not beat them is none.

Each answers masks at the size of the test images.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tumorseg.data.arrays import Slices, true_masks
from tumorseg.data.similarity import Thumbnails, most_similar
from tumorseg.imaging.preprocess import Mask, mask_to_grid, to_native


def background(rows: pd.DataFrame) -> Iterator[Mask]:
    """Calls every pixel healthy; its accuracy is the share of healthy pixels."""
    for height, width in zip(rows["height"], rows["width"], strict=True):
        yield np.zeros((height, width), bool)


def intensity(train: Slices, test: Slices, rows: pd.DataFrame) -> Iterator[Mask]:
    """Calls a pixel tumour if its grey value lies in the band that is best on the train split."""
    low, high = best_band(train.images, train.masks)
    for image, height, width in zip(test.images, rows["height"], rows["width"], strict=True):
        inside = ((image >= low) & (image <= high)).astype(np.float32)
        yield to_native(inside, (height, width)) >= 0.5


def best_band(images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> tuple[int, int]:
    """The grey values low ≤ v ≤ high whose mask has the highest micro Dice, of all pairs.

    Args:
        images: uint8, shape (N, S, S).
        masks: 0 or 1, same shape.
    """
    tumour = np.zeros(256)
    every = np.zeros(256)
    for image, mask in zip(images, masks, strict=True):
        every += np.bincount(image.ravel(), minlength=256)
        tumour += np.bincount(image[mask > 0], minlength=256)
    # Pixels with a value in [low, high], for all pairs at once, from cumulative histograms.
    hits, called = (
        np.subtract.outer(np.cumsum(h), np.cumsum(h) - h).T for h in (tumour, every)
    )  # each 256 (low) × 256 (high)
    scores = 2 * hits / np.maximum(called + tumour.sum(), 1)
    low, high = np.unravel_index(np.argmax(np.triu(scores)), scores.shape)
    return int(low), int(high)


def copy(thumbnails: Thumbnails, train_rows: pd.DataFrame, rows: pd.DataFrame) -> Iterator[Mask]:
    """Copies the mask of the most similar train slice.

    What it scores is what the leak between the splits is worth: a network that merely recognises
    the neighbouring slice of the same patient would score as much.

    Args:
        thumbnails: Of all slices, uint8, shape (N, 48, 48); the manifest's column says which.
        train_rows: The manifest's rows whose masks may be copied.
        rows: Those of the slices that are answered.
    """
    best = most_similar(
        thumbnails[train_rows["thumbnail"].to_numpy(np.intp)],
        thumbnails[rows["thumbnail"].to_numpy(np.intp)],
    )
    for index, height, width in zip(best, rows["height"], rows["width"], strict=True):
        mask = next(true_masks(train_rows.iloc[[index]]))
        if mask.shape != (height, width):
            # As slices were compared: padded to a square, not stretched.
            square = mask_to_grid(mask, max(height, width)).astype(np.float32)
            mask = to_native(square, (height, width)) >= 0.5
        yield mask
