"""Do probabilities mean what they say? Of the pixels called 70% tumour, 70% should be tumour.

Histograms are added up slice by slice, so that no more than one slice's probabilities are kept.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from tumorseg.evaluation.metrics import Floats
from tumorseg.imaging.preprocess import Mask

REGIONS = ("all", "near")
MARGIN = 0.1


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
