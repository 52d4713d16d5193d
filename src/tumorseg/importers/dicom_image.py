"""A DICOM image: what its header says, and its pixels as displayed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut

from tumorseg.imaging.intensity import dicom_grey, limits
from tumorseg.imaging.preprocess import Grey
from tumorseg.imaging.reslice import along
from tumorseg.importers.reading import readable


@dataclass(frozen=True)
class Image:
    """A single-frame image, without its pixels.

    Attributes:
        path: Its file.
        uid: SOPInstanceUID.
        series: SeriesInstanceUID.
        group: Pseudonym of the patient.
        instance: InstanceNumber, 0 if absent.
        place: Position of the first pixel (x, y, z), in mm; None if absent.
        axes: Direction cosines of a row and of a column, 6 numbers; None if absent.
        spacing: Distance of rows and of columns, in mm; None if absent.
        shape: Rows and columns.
    """

    path: Path
    uid: str
    series: str
    group: str
    instance: int
    place: tuple[float, ...] | None
    axes: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    shape: tuple[int, int]

    def along(self) -> tuple[float, int]:
        """Sorts images of a series from one end of the stack to the other."""
        if self.place is None or self.axes is None:
            return 0.0, self.instance
        return along(self.axes, self.place), self.instance


def unusable(header: Any) -> str | None:
    """Why a file is no slice, by its header; None if it is one."""
    if "Rows" not in header or "SeriesInstanceUID" not in header:
        return "is no image"
    if int(header.get("NumberOfFrames") or 1) > 1:
        return "has several frames; only files of one slice are read"
    return "is in colour" if header.get("SamplesPerPixel", 1) != 1 else None


def from_header(path: Path, header: Any) -> Image:
    """What a header says that later steps need."""
    identity = header.get("PatientID") or header.StudyInstanceUID
    spacing, place, axes = (
        tuple(float(value) for value in header.get(keyword) or ()) or None
        for keyword in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
    )
    return Image(
        path=path,
        uid=str(header.SOPInstanceUID),
        series=str(header.SeriesInstanceUID),
        group=hashlib.sha256(str(identity).encode()).hexdigest()[:12],
        instance=int(header.get("InstanceNumber") or 0),
        place=place,
        axes=axes,
        spacing=None if spacing is None else (spacing[0], spacing[1]),
        shape=(int(header.Rows), int(header.Columns)),
    )


def _values(path: Path) -> tuple[NDArray[Any], Any]:
    """The rescaled values of a slice, shape (H, W), and its header."""
    with readable(path):
        dataset = pydicom.dcmread(path)
        return apply_modality_lut(dataset.pixel_array, dataset), dataset


def stack_limits(stack: list[Image]) -> tuple[float, float]:
    """The percentiles of a whole series' values."""
    return limits(np.concatenate([_values(image.path)[0].ravel() for image in stack]))


def grey(image: Image, range_of: Callable[[str], tuple[float, float]]) -> Grey:
    """A slice in its window, or else between its series' percentiles; air is black.

    Args:
        image: Which one.
        range_of: Gives the percentiles of a series.

    Returns:
        uint8, shape (H, W).

    Raises:
        InputError: The file cannot be decoded.
    """
    values, header = _values(image.path)
    with readable(image.path):
        return dicom_grey(values, header, partial(range_of, image.series))
