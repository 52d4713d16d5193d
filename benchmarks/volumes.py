"""DICOM and NIfTI files to send, and the masks that must come back on their grids."""

import base64
import gzip
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from served import Picture, alike, drawn

from tumorseg.imaging.decode import decode
from tumorseg.imaging.render import mask_png
from tumorseg.imaging.seg import nifti_file, seg_file
from tumorseg.inference.predictor import Predictor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.made_volumes import dicom_bytes, series_zip
from tests.samples import mr_slice

_SLICES, _SIDE = 4, 160
# Whose grid a mask lies on, and its voxels.
Placed = tuple[Any, NDArray[Any]]


@dataclass(frozen=True)
class Volume:
    """A volume and the file that the service must answer.

    Attributes:
        data: The file that is sent.
        answer: Grid and voxels of what must come back.
        read: Takes both out of an answer.
    """

    data: bytes = field(repr=False)
    answer: Placed = field(repr=False)
    read: Callable[[bytes], Placed] = field(repr=False)

    def is_answered_by(self, content: bytes) -> bool:
        """Whether a file lies on this volume's grid and holds its masks."""
        grid, voxels = self.read(content)
        return grid == self.answer[0] and alike(voxels > 0, self.answer[1] > 0)


def dicom_picture(predictor: Predictor, number: int) -> Picture:
    """A single-slice DICOM file, and its mask."""
    (only,) = _series(number, 1)
    data = dicom_bytes(only)
    pixels = decode(data).slices[0]
    mask = predictor.segment(pixels).mask
    return Picture(data, pixels, mask, base64.b64encode(mask_png(mask)).decode())


def dicom_volume(predictor: Predictor, number: int) -> Volume:
    """A zip of a small series, and its segmentation."""
    data = series_zip(_series(number, _SLICES))
    study = decode(data)
    masks = [found.mask for found in predictor.segment_many(study.slices)]
    return Volume(data, _read_seg(seg_file(study, masks, predictor.info)), _read_seg)


def nifti_volume(predictor: Predictor, number: int) -> Volume:
    """A small NIfTI volume, and its masks."""
    planes = [drawn(_SLICES * number + n, _SIDE).T for n in range(_SLICES)]
    place = np.diag([0.9, 1.1, 3.0, 1.0])
    place[:3, 3] = number  # so that no two lie on the same grid
    data = nibabel.Nifti1Image(np.stack(planes, axis=2).astype(np.int16), place).to_bytes()
    study = decode(data)
    masks = [found.mask for found in predictor.segment_many(study.slices)]
    return Volume(data, _read_nifti(nifti_file(study, masks)), _read_nifti)


def _series(number: int, count: int) -> list[Dataset]:
    study, series = generate_uid(), generate_uid()
    planes = (drawn(_SLICES * number + n, _SIDE) * np.uint16(16) for n in range(count))
    return [mr_slice("made", study, series, n, plane) for n, plane in enumerate(planes)]


def _read_seg(content: bytes) -> Placed:
    seg = pydicom.dcmread(BytesIO(content))
    return seg.ReferencedSeriesSequence[0].SeriesInstanceUID, seg.pixel_array


def _read_nifti(content: bytes) -> Placed:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    return image.affine.tolist(), np.asarray(image.dataobj)
