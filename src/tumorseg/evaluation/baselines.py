"""Baselines without a network; each yields masks at the size of the test images."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tumorseg.imaging.preprocess import Mask, mask_to_grid, to_native

Sizes = Iterable[tuple[int, int]]  # height and width of each test image, in pixels


def background(sizes: Sizes) -> Iterator[Mask]:
    """Predicts no tumour anywhere."""
    for size in sizes:
        yield np.zeros(size, bool)


def intensity(
    train: NDArray[np.uint8], masks: NDArray[np.uint8], test: NDArray[np.uint8], sizes: Sizes
) -> Iterator[Mask]:
    """Predicts tumour where the grey value lies in the band that is best on the train split.

    Args:
        train: The train images, uint8, shape (N, S, S).
        masks: Theirs, 0 or 1, same shape.
        test: The test images, uint8, shape (M, S, S).
        sizes: Of the test images.
    """
    low, high = best_band(train, masks)
    for image, size in zip(test, sizes, strict=True):
        inside = ((image >= low) & (image <= high)).astype(np.float32)
        yield to_native(inside, size) >= 0.5


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


def copy(masks: Iterable[Mask], sizes: Sizes) -> Iterator[Mask]:
    """Copies the mask of the most similar train slice.

    It scores what a network would that only recognised neighbouring slices of the same patient.

    Args:
        masks: For each test image that mask, at its own size.
        sizes: Of the test images.
    """
    for mask, size in zip(masks, sizes, strict=True):
        if mask.shape == size:
            yield mask
            continue
        # Padded to a square, as slices were compared.
        square = mask_to_grid(mask, max(size)).astype(np.float32)
        yield to_native(square, size) >= 0.5
