"""Calibration of predicted probabilities, and the choice of the threshold that cuts them to masks.

Histograms are added up slice by slice, so that only one slice's probabilities are in memory.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from tumorseg.evaluation.metrics import Floats, count, dice
from tumorseg.imaging.preprocess import Mask

REGIONS = ("all", "near")
MARGIN = 0.1
THRESHOLDS = tuple(step / 20 for step in range(1, 20))


class Reliability:
    """The reliability diagram of one method, over all pixels and over those near a tumour.

    Most pixels are background with a probability near 0, and dominate the figures of `all`. `near`
    holds the pixels of the bounding box of the true tumour and of the prediction at 0.5, widened on
    each side by a tenth of its height or width; slices with neither are left out.

    Args:
        bins: Number of equally wide bins of probability.

    Attributes:
        sums: Region → number of pixels, sum of probabilities and number of tumour pixels of each
            bin, shape (3, bins).
    """

    def __init__(self, bins: int = 20) -> None:
        self.bins = bins
        self.sums: dict[str, Floats] = {region: np.zeros((3, bins)) for region in REGIONS}

    def add(self, probability: NDArray[np.float32], truth: Mask) -> None:
        """Counts one slice.

        Args:
            probability: Of tumour, float32 in [0, 1], shape (H, W).
            truth: bool, shape (H, W).
        """
        self.sums["all"] += self._histogram(probability, truth)
        boxes = ndimage.find_objects((truth | (probability >= 0.5)).astype(np.uint8))
        if boxes:
            margins = [int(np.ceil(MARGIN * (side.stop - side.start))) for side in boxes[0]]
            box = tuple(
                slice(max(side.start - margin, 0), side.stop + margin)
                for side, margin in zip(boxes[0], margins, strict=True)
            )
            self.sums["near"] += self._histogram(probability[box], truth[box])

    def table(self) -> pd.DataFrame:
        """A row a region and bin: region, low, high, pixels, mean_probability, tumour_fraction.

        A bin holds low ≤ probability < high, the last one 1 too; mean and fraction of an empty bin
        are NaN.
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
        every = np.bincount(bins, minlength=self.bins)
        tumour = np.bincount(bins[truth.ravel()], minlength=self.bins)
        return np.stack([every, np.bincount(bins, flat, self.bins), tumour])


def best_threshold(
    probabilities: Iterable[NDArray[np.float32]],
    truths: Iterable[Mask],
    thresholds: Sequence[float] = THRESHOLDS,
) -> float:
    """The threshold with the highest mean Dice over slices.

    Of equally good ones it is the one nearest 0.5, of two equally near ones the lower.

    Args:
        probabilities: Of each slice, float32, shape (H, W).
        truths: Of each slice, bool, same shape.
        thresholds: To choose from.
    """
    table = []
    for probability, truth in zip(probabilities, truths, strict=True):
        counts = [count(probability >= threshold, truth) for threshold in thresholds]
        table.append([float(dice(c["tp"], c["fp"] + c["fn"])) for c in counts])
    means = np.mean(table, axis=0)
    equals = np.asarray(thresholds)[means > means.max() - 1e-9]  # but for rounding
    return min(equals.tolist(), key=lambda threshold: (round(abs(threshold - 0.5), 9), threshold))
