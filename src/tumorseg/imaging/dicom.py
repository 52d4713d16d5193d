"""DICOM files, one or those of a zip, to the images among them."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from tumorseg.imaging.decode import Refusal, Rejected, Study
from tumorseg.imaging.dicom_headers import Reader
from tumorseg.imaging.dicom_stack import stack_study

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"


def dicom_study(files: Iterable[bytes]) -> Study:
    """Decodes one DICOM file, or the files of a zip that are to hold one series.

    Files that are no image (reports, directories, segmentations, pictures in colour) are passed
    over where there are others, and so are files that come again.

    Raises:
        Rejected: There is no grey image, or they are not one consistent stack of slices.
    """
    reader = Reader()
    images: list[Dataset] = []
    digests: dict[str, bytes] = {}
    refusal = Refusal(415, "The zip holds no DICOM image: zip the files of one series.")
    for data in files:
        if data[128:132] != b"DICM":
            continue
        dataset = reader.read(data)
        if (why := _unusable(dataset)) is not None:
            refusal = why
        elif _is_new(dataset, data, digests):
            images.append(dataset)
    if not images:
        raise Rejected(*refusal)
    series = {str(dataset.get("SeriesInstanceUID", "")) for dataset in images}
    if len(series) > 1:
        raise Rejected(400, f"The zip holds {len(series)} series: send them one by one.")
    return stack_study(images)


def _is_new(dataset: Dataset, data: bytes, digests: dict[str, bytes]) -> bool:
    """Whether an image has not come before; what has no identifier has not.

    Args:
        dataset: Its header.
        data: Its file.
        digests: Of the files before, by identifier; this one's is added.

    Raises:
        Rejected: Another image has the same identifier, so that one of them would be lost.
    """
    uid = str(dataset.get("SOPInstanceUID") or "")
    if not uid:
        return True
    digest = sha256(data).digest()
    if uid not in digests:
        digests[uid] = digest
        return True
    if digests[uid] != digest:
        raise Rejected(
            400,
            "Several slices share one identifier (SOPInstanceUID): export the series again, with "
            "an identifier for each.",
        )
    return False


def _unusable(header: Any) -> Refusal | None:
    if header.get("SOPClassUID") in (SegmentationStorage, LABEL_MAP):
        return Refusal(415, "The DICOM file is a segmentation: send the images themselves.")
    if any(keyword not in header for keyword in ("Rows", "Columns", "PixelData")):
        return Refusal(415, "The DICOM file holds no image: send the images of one series.")
    photometric = header.get("PhotometricInterpretation")
    if header.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return Refusal(415, "The DICOM image is in colour: send the grey images of the scanner.")
    return None
