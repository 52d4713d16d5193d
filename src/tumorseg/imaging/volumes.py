"""The bytes of a volume, DICOM or NIfTI, to a study; which one is told by its content."""

import logging
import warnings
from io import BytesIO

from tumorseg.imaging.decode import (
    MAX_BYTES,
    MAX_VOLUME_BYTES,
    TOO_MANY_BYTES,
    TOO_MANY_VOLUME_BYTES,
    WRONG_KIND,
    Rejected,
    Study,
)
from tumorseg.imaging.dicom import dicom_study
from tumorseg.imaging.nifti import nifti_study
from tumorseg.imaging.unpacking import EMPTY_ZIP, GZIP, ZIP, gunzip, unzip

_PAIRS = (b"ni1\0", b"ni2\0")


def decode_volume(data: bytes) -> Study:
    """Decodes a DICOM file, a zip of a DICOM series, or a NIfTI file, packed by gzip or not.

    Args:
        data: The bytes of the file.

    Raises:
        Rejected: It is none of these, damaged, too large, or not one consistent stack of slices.
    """
    found = _kind(data)
    if found is None:
        # Nothing but a volume may be larger than a picture.
        raise Rejected(*(TOO_MANY_BYTES if len(data) > MAX_BYTES else WRONG_KIND))
    if len(data) > MAX_VOLUME_BYTES:
        raise Rejected(*TOO_MANY_VOLUME_BYTES)
    hush()
    try:
        if found == "nifti":
            packed = data.startswith(GZIP)
            return nifti_study(gunzip(data, _is_nifti, WRONG_KIND) if packed else BytesIO(data))
        return dicom_study(unzip(data) if found == "zip" else [data])
    except Rejected:
        raise
    except Exception:
        # The readers' errors have nothing in common, and their messages quote the file.
        raise Rejected(
            400, "The volume is damaged or cut short: export it again and resend it."
        ) from None


def hush() -> None:
    """Keeps pydicom, highdicom and nibabel from printing values of a file that they doubt."""
    for name in ("pydicom", "highdicom", "nibabel"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # Each time, since whoever restores the filters in the meantime would bring the values back.
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|nibabel|tumorseg\.serving)\b")


def _kind(data: bytes) -> str | None:
    if data[128:132] == b"DICM":
        return "dicom"
    if data.startswith((ZIP, EMPTY_ZIP)):
        return "zip"
    return "nifti" if data.startswith(GZIP) or _is_nifti(data) else None


def _is_nifti(data: bytes) -> bool:
    if data[344:348] in _PAIRS or data[4:8] in _PAIRS:
        raise Rejected(415, "The NIfTI file is half of a pair: save it as one .nii or .nii.gz.")
    return data[344:348] == b"n+1\0" or data[4:12] == b"n+2\0\r\n\x1a\n"
