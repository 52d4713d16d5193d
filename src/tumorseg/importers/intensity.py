"""From a scanner's values, which have no unit, to 8 bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorseg.preprocess import Grey

PERCENTILES = (0.5, 99.5)


def limits(values: NDArray[Any]) -> tuple[float, float]:
    """The percentiles between which values are kept; not finite ones do not count.

    Args:
        values: Any shape: a whole volume, so that its slices stay comparable.
    """
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, PERCENTILES) if finite.size else (0.0, 0.0)
    return float(low), float(high)


def to_uint8(values: NDArray[Any], low: float, high: float) -> Grey:
    """Maps [low, high] to 0–255 and clips the rest; what is not a number becomes 0.

    Returns:
        uint8, the shape of `values`.
    """
    scaled = (values.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
    return np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
