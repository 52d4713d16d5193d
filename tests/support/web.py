"""The files that tests of the page and the API send: discs in DICOM series and NIfTI volumes."""

import io
from typing import Any

import nibabel
import numpy as np
from PIL import Image
from pydicom.uid import generate_uid

from tests.support.samples import mr_slice

SPACING = (0.9, 1.1, 3.0)  # of the NIfTI volume, in mm


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def blob(radius: int, shape: tuple[int, int] = (72, 60)) -> np.ndarray:
    """A bright disc on dark noise, uint8, shape (H, W)."""
    rows, columns = np.indices(shape)
    inside = (rows - 30) ** 2 + (columns - 25) ** 2 < radius**2
    noise = np.random.default_rng(radius).integers(0, 30, shape)
    return np.where(inside, 220, noise).astype(np.uint8)


def dicom_series(count: int = 3) -> list[Any]:
    """MR slices of 0.5 × 0.7 mm, 4 mm apart."""
    study, series = generate_uid(), generate_uid()
    return [
        mr_slice("ID7", study, series, n, blob(8 + 3 * n) * np.uint16(8), PatientName="DOE^JANE")
        for n in range(count)
    ]


def nifti_volume(count: int = 7) -> Any:
    """An axial volume with a disc of another size in each slice."""
    values = np.stack([blob(6 + 2 * n).T for n in range(count)], axis=2)
    image = nibabel.Nifti1Image(values.astype(np.int16) * 5, np.diag([*SPACING, 1.0]))
    return nibabel.Nifti1Image.from_bytes(image.to_bytes())  # its affine is what a file can hold
