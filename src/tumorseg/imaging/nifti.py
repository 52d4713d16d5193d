"""A NIfTI file's slices, and masks back on its own grid."""

import math
from io import BytesIO
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Extensions
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from tumorseg.imaging.decode import Rejected, Study, check_count, is_distance
from tumorseg.imaging.intensity import limits, to_uint8
from tumorseg.imaging.reslice import AXES, planes

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
# Free text, where scanners and converters put names of patients and of files.
_TEXTS = {"descrip", "aux_file", "intent_name", "db_name"}


def nifti_study(file: BytesIO) -> Study:
    """Decodes a NIfTI file, version 1 or 2, of three axes.

    Args:
        file: At its start.

    Raises:
        Rejected: It does not hold one finite grey volume in a possible place, or is too large.
    """
    size = len(file.getbuffer())
    version2 = file.read(4) in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    file.seek(0)
    image = (nibabel.Nifti2Image if version2 else nibabel.Nifti1Image).from_stream(file)
    _check(image, size)
    canonical = nibabel.as_closest_canonical(image)
    values = np.asanyarray(canonical.dataobj).reshape(canonical.shape[:3])
    if not np.isfinite(values).any():
        raise Rejected(400, "The NIfTI volume holds no finite value: export it again.")
    axis = cut_across(image.affine)
    slices = planes(values, axis)
    sizes = _millimetres(canonical)
    thickness = float(sizes[AXES.index(axis)])
    column, row = (float(s) for name, s in zip(AXES, sizes, strict=True) if name != axis)
    low, high = limits(slices)
    greys = [np.ascontiguousarray(to_uint8(plane, low, high)) for plane in slices]
    return Study("nifti", greys, (row, column), thickness, source=_grid(image))


def cut_across(affine: NDArray[Any]) -> str:
    """Across which of `AXES` slices are cut: axial, unless another is by far the coarsest.

    Thick slices were acquired one by one and are looked at so; cutting across them would show
    pixels that are several times as long as wide.

    Args:
        affine: From voxels to mm, shape (4, 4).
    """
    sizes = voxel_sizes(affine)[_stored(affine)]
    coarsest = int(np.argmax(sizes))
    return AXES[coarsest] if sizes[coarsest] >= 2 * np.sort(sizes)[1] else "axial"


def _stored(affine: NDArray[Any]) -> NDArray[np.intp]:
    """Which of the stored axes runs along each of `AXES`."""
    return np.argsort(io_orientation(affine)[:, 0])


def _millimetres(image: Any) -> NDArray[np.float64]:
    """The distance of voxels along each axis."""
    return voxel_sizes(image.affine) * _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)


def _check(image: Any, size: int) -> None:
    shape, dtype = image.shape, image.header.get_data_dtype()
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise Rejected(
            400, f"The NIfTI file has {len(shape)} axes, not three: send one volume of it."
        )
    if dtype.kind not in "biuf":
        raise Rejected(415, "The NIfTI volume is in colour or complex: send one grey volume.")
    if min(shape) < 1 or math.prod(shape) * dtype.itemsize > size:
        raise Rejected(400, "The NIfTI file is cut short: export it again and resend it.")
    affine = image.affine
    with np.errstate(all="ignore"):
        if (
            not np.isfinite(affine).all()
            or np.isnan(io_orientation(affine)).any()
            or not all(map(is_distance, _millimetres(image)))
        ):
            raise Rejected(
                400, "The NIfTI file does not say where its voxels lie: repair its affine."
            )
    nothing = np.broadcast_to(False, [shape[axis] for axis in _stored(affine)])
    depth, height, width = planes(nothing, cut_across(affine)).shape
    check_count(depth, width, height)


def _grid(image: Any) -> Any:
    """The image without its values and its texts; what remains tells the grid."""
    header = image.header.copy()
    for text in _TEXTS & set(header.keys()):
        header[text] = b""
    header.extensions = Nifti1Extensions()
    header["vox_offset"] = 0
    nothing = np.broadcast_to(np.uint8(0), image.shape)
    return type(image)(nothing, image.affine, header)
