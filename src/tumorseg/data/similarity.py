"""How alike slices are: correlation of thumbnails, a block at a time so that memory stays small."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tumorseg.imaging.preprocess import Grey, to_square

SIDE = 48  # pixels; the published copy control uses the same
BLOCK = 1024  # rows compared at once: 1024 × 1024 correlations take 4 MB

Thumbnails = NDArray[np.uint8]  # (N, SIDE, SIDE)


def thumbnail(grey: Grey) -> NDArray[np.uint8]:
    """A slice, shape (H, W), reduced to uint8 of shape (SIDE, SIDE)."""
    square = Image.fromarray(to_square(grey))
    # The sharpest of the usual filters makes the strongest copy control: 0.696 micro Dice on the
    # published set, against 0.691 with area averaging.
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def normalised(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """Centred rows of unit length, float32, shape (N, SIDE²); their products are correlations."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def most_similar(train: Thumbnails, test: Thumbnails) -> NDArray[np.intp]:
    """For each test slice the index of the train slice of highest correlation.

    Args:
        train: Shape (N, SIDE, SIDE).
        test: Shape (M, SIDE, SIDE).

    Returns:
        Shape (M,).
    """
    index = np.zeros(len(test), np.intp)
    best = np.full(len(test), -np.inf, np.float32)
    wanted = normalised(test)
    for start in range(0, len(train), BLOCK):
        found = wanted @ normalised(train[start : start + BLOCK]).T
        at = found.argmax(axis=1)
        value = found[np.arange(len(test)), at]
        better = value > best
        index[better], best[better] = at[better] + start, value[better]
    return index


def similar_pairs(
    thumbnails: Thumbnails, rows: NDArray[np.intp], threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """All pairs of slices whose correlation is at least `threshold`.

    Args:
        thumbnails: Shape (N, SIDE, SIDE), memory-mapped where N is large.
        rows: Which of them to compare, shape (M,).
        threshold: Of the correlation, −1 to 1.

    Returns:
        Positions i < j in `rows`, shape (P, 2), and their correlations, shape (P,).
    """
    pairs, values = [np.empty((0, 2), np.intp)], [np.empty(0, np.float32)]
    for top in range(0, len(rows), BLOCK):
        wanted = normalised(thumbnails[rows[top : top + BLOCK]])
        for left in range(top, len(rows), BLOCK):
            found = wanted @ normalised(thumbnails[rows[left : left + BLOCK]]).T
            i, j = np.nonzero(found >= threshold)
            upper = i + top < j + left
            i, j = i[upper], j[upper]
            pairs.append(np.column_stack([i + top, j + left]))
            values.append(found[i, j])
    return np.concatenate(pairs), np.concatenate(values)


def correlation(thumbnails: Thumbnails, pairs: NDArray[np.intp]) -> NDArray[np.float32]:
    """The correlation of given pairs of slices: indices (P, 2) → float32, shape (P,)."""
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(pairs), BLOCK):
        left, right = pairs[start : start + BLOCK].T
        parts.append(
            np.einsum("ij,ij->i", normalised(thumbnails[left]), normalised(thumbnails[right]))
        )
    return np.concatenate(parts)
