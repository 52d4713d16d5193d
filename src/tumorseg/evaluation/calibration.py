"""Do probabilities mean what they say? Of the pixels called 70% tumour, 70% should be tumour.

And from which probability on a pixel is called tumour: chosen on validation slices, by mean Dice.
Histograms are added up slice by slice, so that only one slice's probabilities are in memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from tumorseg.core.errors import InputError
from tumorseg.evaluation.metrics import Floats, dice
from tumorseg.imaging.preprocess import Mask

REGIONS = ("all", "near")
MARGIN = 0.1
THRESHOLDS = tuple(step / 20 for step in range(1, 20))


@dataclass(frozen=True)
class Reliability:
    """The reliability diagram of one method, over all pixels and over those near a tumour.

    Nine pixels in ten are background that every method is rightly sure of; over `all` pixels they
    drown the rest. `near` are those in the box around the true tumour and what is called tumour
    at 0.5, widened on each side by a tenth of its height or width. Since the calls have a part in
    it, methods are not judged on quite the same pixels; a slice without either is left out of it.

    Attributes:
        bins: Number of equally wide bins of probability.
        sums: Region → pixels, sum of probabilities and tumour pixels of each bin; (3, bins).
    """

    bins: int = 20
    sums: dict[str, Floats] = field(init=False)

    def __post_init__(self) -> None:
        """Starts with empty histograms."""
        object.__setattr__(self, "sums", {name: np.zeros((3, self.bins)) for name in REGIONS})

    def add(self, probability: NDArray[np.float32], truth: Mask) -> None:
        """Counts one slice.

        Args:
            probability: Of tumour, float32 in [0, 1], shape (H, W).
            truth: bool, shape (H, W).
        """
        self.sums["all"] += self._histogram(probability, truth)
        box = _near(truth | (probability >= 0.5))
        if box:
            self.sums["near"] += self._histogram(probability[box], truth[box])

    def table(self) -> pd.DataFrame:
        """A row a region and bin: region, low, high, pixels, mean_probability, tumour_fraction.

        A bin holds low ≤ probability < high, the last one 1 too; where there is no pixel the mean
        and the fraction are NaN.
        """
        edges = np.arange(self.bins + 1) / self.bins
        tables = []
        for region, (pixels, probability, tumour) in self.sums.items():
            some = np.where(pixels > 0, pixels, np.nan)
            columns = {"low": edges[:-1], "high": edges[1:], "pixels": pixels.astype(np.int64)}
            means = {"mean_probability": probability / some, "tumour_fraction": tumour / some}
            tables.append(pd.DataFrame(columns | means | {"region": region}))
        return pd.concat(tables, ignore_index=True)

    def ece(self, region: str) -> float:
        """Expected calibration error: mean of |tumour fraction − mean probability| over pixels.

        Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602, with the probability of tumour in place of
        that of the likeliest class.

        Args:
            region: `all` or `near`.

        Returns:
            In [0, 1]; NaN where no pixel was counted.
        """
        pixels, probability, tumour = self.sums[region]
        total = pixels.sum()
        return float(np.abs(tumour - probability).sum() / total) if total else float("nan")

    def _histogram(self, probability: NDArray[np.float32], truth: Mask) -> Floats:
        flat = probability.ravel()
        # Resizing may overshoot 1 by a rounding error, and 1 itself belongs to the last bin.
        bins = np.minimum((flat * self.bins).astype(np.intp), self.bins - 1)
        return np.stack(
            [
                np.bincount(bins, minlength=self.bins),
                np.bincount(bins, flat, self.bins),
                np.bincount(bins[truth.ravel()], minlength=self.bins),
            ]
        )


def _near(mask: Mask) -> tuple[slice, ...] | None:
    """The box around a mask and a tenth more on each side, rounded up; None if it is empty."""
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(_widened(side.start, side.stop) for side in boxes[0]) if boxes else None


def _widened(start: int, stop: int) -> slice:
    margin = int(np.ceil(MARGIN * (stop - start)))
    return slice(max(start - margin, 0), stop + margin)


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
    """
    grid = np.asarray(thresholds, np.float32)
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
