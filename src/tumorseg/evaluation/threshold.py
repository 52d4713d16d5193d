"""From which probability on a pixel is called tumour: chosen on validation slices, by mean Dice."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tumorseg.core.errors import InputError
from tumorseg.evaluation.metrics import Floats, dice
from tumorseg.imaging.preprocess import Mask

THRESHOLDS = tuple(step / 20 for step in range(1, 20))


def dice_by_threshold(
    probabilities: Iterable[NDArray[np.float32]],
    truths: Iterable[Mask],
    thresholds: Sequence[float] = THRESHOLDS,
) -> Floats:
    """Dice of every slice at every threshold, from one histogram a slice.

    The same, to the last bit, as that of `probability >= threshold` with the threshold as a Python
    float, which NumPy turns into float32 for the comparison.

    Args:
        probabilities: Of each slice, float32, shape (H, W).
        truths: Of each slice, bool, same shape.
        thresholds: Ascending, length T.

    Returns:
        Shape (slices, T); 1 where a mask is empty on both sides.

    Raises:
        InputError: If the thresholds do not ascend.
    """
    grid = np.asarray(thresholds, np.float32)
    if not len(grid) or np.any(np.diff(grid) <= 0):
        raise InputError(f"thresholds {list(thresholds)}: give them in ascending order")
    rows = [
        _dice_of_slice(probability, truth, grid)
        for probability, truth in zip(probabilities, truths, strict=True)
    ]
    return np.array(rows).reshape(-1, len(grid))


def best_threshold(table: Floats, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """The threshold with the highest mean Dice over slices; of equals the one nearest 0.5.

    Args:
        table: From `dice_by_threshold`, shape (slices, T).
        thresholds: The same as there.

    Raises:
        InputError: If there is no slice.
    """
    if not len(table):
        raise InputError("no slice to choose a threshold on: the validation split is empty")
    means = table.mean(axis=0)
    # What differs by rounding only is equal; of two equally near 0.5 the lower is taken.
    equals = np.asarray(thresholds)[means > means.max() - 1e-9]
    return min(equals.tolist(), key=lambda threshold: (round(abs(threshold - 0.5), 9), threshold))


def _dice_of_slice(
    probability: NDArray[np.float32], truth: Mask, grid: NDArray[np.float32]
) -> Floats:
    # Most pixels lie below the lowest threshold and need not be sorted into it.
    called = probability >= grid[0]
    reached = np.searchsorted(grid, probability[called], side="right")  # 1 … T thresholds
    every, tumour = (
        # Pixels that reach at least each threshold: the histogram summed from its upper end.
        np.bincount(which, minlength=len(grid) + 1)[:0:-1].cumsum()[::-1]
        for which in (reached, reached[truth[called]])
    )
    return dice(tumour, every + np.count_nonzero(truth) - 2 * tumour)
