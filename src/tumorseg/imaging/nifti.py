"""NIfTI files: checks of the header, geometry, and slices as they are displayed."""

from io import BytesIO
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Extensions
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from tumorseg.imaging.display import AXES, limits, planes, to_uint8
from tumorseg.imaging.preprocess import Grey
from tumorseg.imaging.study import Rejected, Study, check_size, is_distance

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
# Free text, where scanners and converters put names of patients and of files.
_TEXTS = {"descrip", "aux_file", "intent_name", "db_name"}


def nifti_study(file: BytesIO) -> Study:
    """Decodes a NIfTI file, version 1 or 2, of three axes.

    Args:
        file: At its start.

    Raises:
        Rejected: It is not one grey volume with a valid affine, or is too large.
    """
    version2 = file.read(4) in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    file.seek(0)
    image = (nibabel.Nifti2Image if version2 else nibabel.Nifti1Image).from_stream(file)
    check_image(image)
    axis = cut_across(image.affine)
    shape = [image.shape[stored] for stored in _stored(image.affine)]
    slices, height, width = planes(np.broadcast_to(False, shape), axis).shape  # without decoding
    check_size(width, height, slices)
    spacing, thickness = distances(image, axis)
    return Study("nifti", grey_slices(image, axis), spacing, thickness, source=_grid(image))


def check_image(image: Any) -> None:
    """Raises Rejected if a nibabel image, by its header, is not one grey volume with an affine."""
    shape = image.shape
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise Rejected(
            400, f"The NIfTI file has {len(shape)} axes, not three: send one volume of it."
        )
    if image.get_data_dtype().kind not in "biuf":
        raise Rejected(415, "The NIfTI volume is in colour or complex: send one grey volume.")
    with np.errstate(all="ignore"):
        if (
            not np.isfinite(image.affine).all()
            or np.isnan(io_orientation(image.affine)).any()
            or not all(map(is_distance, _millimetres(image)))
        ):
            raise Rejected(
                400, "The NIfTI file does not say where its voxels lie: repair its affine."
            )


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


def distances(image: Any, axis: str) -> tuple[tuple[float, float], float]:
    """The distances of rows and of columns, and of slices cut across an axis, in mm."""
    sizes = dict(zip(AXES, map(float, _millimetres(image)[_stored(image.affine)]), strict=True))
    thickness = sizes.pop(axis)
    column, row = sizes.values()
    return (row, column), thickness


def value_slices(image: Any, axis: str) -> NDArray[Any]:
    """The values of a checked image, shape (slices, H, W), each slice as it is displayed."""
    canonical = nibabel.as_closest_canonical(image)
    return planes(np.asanyarray(canonical.dataobj).reshape(canonical.shape[:3]), axis)


def grey_slices(image: Any, axis: str) -> list[Grey]:
    """The same in 8 bits, shape (H, W) each, on one scale throughout the volume."""
    slices = value_slices(image, axis)
    low, high = limits(slices)
    return [np.ascontiguousarray(to_uint8(plane, low, high)) for plane in slices]


def _stored(affine: NDArray[Any]) -> NDArray[np.intp]:
    """Which of the stored axes runs along each of `AXES`."""
    return np.argsort(io_orientation(affine)[:, 0])


def _millimetres(image: Any) -> NDArray[np.float64]:
    """The distance of voxels along each stored axis."""
    return voxel_sizes(image.affine) * _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)


def _grid(image: Any) -> Any:
    """The image without its values and its texts: what remains is the grid."""
    header = image.header.copy()
    for text in _TEXTS & set(header.keys()):
        header[text] = b""
    header.extensions = Nifti1Extensions()
    header["vox_offset"] = 0
    nothing = np.broadcast_to(np.uint8(0), image.shape)
    return type(image)(nothing, image.affine, header)
