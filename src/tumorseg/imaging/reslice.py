"""How volumes become slices as radiologists see them; one path for training and serving.

The patient's right is on the left of axial and coronal slices, with anterior and superior up;
sagittal slices face left. Slices are numbered from inferior, posterior and left.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

AXES = ("sagittal", "coronal", "axial")  # right, anterior and superior, as NIfTI counts


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


def along(axes: Sequence[float], place: Sequence[float]) -> float:
    """Where a DICOM slice lies on the way through its stack, in mm.

    Args:
        axes: ImageOrientationPatient, 6 direction cosines.
        place: ImagePositionPatient (x, y, z), in mm.
    """
    return float(np.dot(np.cross(axes[:3], axes[3:]), place))
