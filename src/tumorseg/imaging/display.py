"""Scanner values to 8-bit slices in radiological orientation, for training and serving alike.

The patient's right is on the left of axial and coronal slices, with anterior and superior up;
sagittal slices face left. Slices are numbered from inferior, posterior and left.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorseg.imaging.preprocess import Grey

PERCENTILES = (0.5, 99.5)
AXES = ("sagittal", "coronal", "axial")  # right, anterior and superior, as NIfTI counts


def limits(values: NDArray[Any]) -> tuple[float, float]:
    """The percentiles between which values are kept; not finite ones do not count.

    Args:
        values: Any shape: a whole volume, so that its slices stay comparable.
    """
    finite = np.isfinite(values)
    # Most volumes are finite throughout, and a copy of one is large.
    kept = values if finite.all() else values[finite]
    low, high = np.percentile(kept, PERCENTILES) if kept.size else (0.0, 0.0)
    return float(low), float(high)


def to_uint8(values: NDArray[Any], low: float, high: float) -> Grey:
    """Maps [low, high] to 0–255 and clips the rest; what is not a number becomes 0.

    Returns:
        uint8, the shape of `values`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (values.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
        return np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)


def window(header: Any) -> tuple[float, float, str] | None:
    """A DICOM image's first window: centre, width and function; None if it has no usable one."""
    center, width = (
        next(iter(np.atleast_1d(header.get(keyword, []))), None)
        for keyword in ("WindowCenter", "WindowWidth")
    )
    if center is None or width is None or not float(width) > 1:
        return None
    return float(center), float(width), str(header.get("VOILUTFunction") or "LINEAR")


def dicom_grey(values: NDArray[Any], header: Any, low: float, high: float) -> Grey:
    """A DICOM slice in its window, or else between two values of its series; air is black.

    Args:
        values: After the modality LUT, shape (H, W).
        header: Has the window and PhotometricInterpretation.
        low: What is shown as 0, if there is no window.
        high: What is shown as 255.

    Returns:
        uint8, shape (H, W).
    """
    if (chosen := window(header)) is not None:
        # Only DICOM needs highdicom, which is slow to import.
        from highdicom.pixels import apply_voi_window

        shown = apply_voi_window(values, *chosen, (0.0, 255.0)).round().astype(np.uint8)
    else:
        shown = to_uint8(values, low, high)
    return 255 - shown if header.PhotometricInterpretation == "MONOCHROME1" else shown


def planes(values: NDArray[Any], axis: str) -> NDArray[Any]:
    """Cuts a volume into slices as they are displayed.

    Args:
        values: In canonical order: towards right, anterior and superior, shape (X, Y, Z).
        axis: One of `AXES`: across which slices are cut.

    Returns:
        A view, shape (slices, H, W).
    """
    cut = np.moveaxis(values, AXES.index(axis), 0)
    return np.flip(cut, (1, 2)).swapaxes(1, 2)


def from_planes(slices: NDArray[Any], axis: str) -> NDArray[Any]:
    """Undoes `planes`: shape (slices, H, W) to a view in canonical order, shape (X, Y, Z)."""
    return np.moveaxis(np.flip(slices.swapaxes(1, 2), (1, 2)), 0, AXES.index(axis))
