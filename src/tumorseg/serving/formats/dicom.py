"""DICOM bytes to headers and frames: only what is needed is read, and within bounds."""

from collections.abc import Iterable
from io import BytesIO
from typing import Any

import pydicom
from pydicom import config
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, SegmentationStorage

from tumorseg.serving.formats.decode import Refusal, Rejected, Study
from tumorseg.serving.formats.dicom_stack import stack_study

# pydicom would otherwise quote values that it doubts.
config.settings.reading_validation_mode = config.IGNORE

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
# The identifiers here are those that the segmentation standard requires of an answer where they
# are known (types 1 and 2); everything else about the patient is never even read.
_IDENTIFIERS = (
    "SpecificCharacterSet PatientID PatientName PatientBirthDate PatientSex StudyInstanceUID "
    "StudyID StudyDate StudyTime AccessionNumber ReferringPhysicianName SeriesInstanceUID "
    "SOPClassUID SOPInstanceUID FrameOfReferenceUID PositionReferenceIndicator"
)
_DISPLAY = (
    "Modality ImageType InstanceNumber Rows Columns NumberOfFrames SamplesPerPixel "
    "PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation "
    "ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness "
    "RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence WindowCenter WindowWidth "
    "VOILUTFunction LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "ExtendedOffsetTable ExtendedOffsetTableLengths PixelData"
)
_TAGS = f"{_IDENTIFIERS} {_DISPLAY}".split()
_PIXEL_DATA = 0x7FE00010
# A large series of slices with long headers needs a fifth of either.
_MAX_READS = 4_000_000
_MAX_HEADER = 16 * 1024 * 1024

_TOO_LONG = Refusal(413, "The DICOM headers are too long: export the series without extras.")


def dicom_study(files: Iterable[bytes]) -> Study:
    """Decodes one DICOM file, or the files of a zip that are to hold one series.

    Files that are no image (reports, directories, segmentations, pictures in colour) are passed
    over where there are others.

    Raises:
        Rejected: There is no grey image, or they are not one consistent stack of slices.
    """
    reader = _Reader()
    images: dict[str, Dataset] = {}
    refusal = Refusal(415, "The zip holds no DICOM image: zip the files of one series.")
    for data in files:
        if data[128:132] != b"DICM":
            continue
        dataset = reader.read(data)
        if (why := _unusable(dataset)) is not None:
            refusal = why
        else:
            images.setdefault(str(dataset.get("SOPInstanceUID", len(images))), dataset)
    if not images:
        raise Rejected(*refusal)
    series = {str(dataset.get("SeriesInstanceUID", "")) for dataset in images.values()}
    if len(series) > 1:
        raise Rejected(400, f"The zip holds {len(series)} series: send them one by one.")
    return stack_study(list(images.values()))


class _Reader:
    """Reads headers and counts what that takes over all files of an upload."""

    def __init__(self) -> None:
        self.reads = _MAX_READS
        self.header = _MAX_HEADER

    def read(self, data: bytes) -> Dataset:
        """The wanted elements of one file, its pixels still encoded."""
        file = _Counted(data, self)
        file.seek(132)
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        # pydicom would inflate the whole file, whatever comes of it.
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise Rejected(415, "The DICOM file is deflated as a whole: export it uncompressed.")
        file.seek(0)
        dataset = pydicom.dcmread(file, specific_tags=_TAGS)
        # Sequences are parsed when they are asked for, so their size has to be bounded, too.
        self.header -= sum(
            len(element.value)
            for element in dataset.values()
            if isinstance(element, RawDataElement) and element.value and element.tag != _PIXEL_DATA
        )
        if self.header < 0:
            raise Rejected(*_TOO_LONG)
        return dataset


class _Counted(BytesIO):
    """A file that refuses to be read in millions of tiny pieces."""

    def __init__(self, data: bytes, reader: _Reader) -> None:
        super().__init__(data)
        self._reader = reader

    def read(self, size: int | None = -1) -> bytes:
        self._reader.reads -= 1
        if self._reader.reads < 0:
            raise Rejected(*_TOO_LONG)
        return super().read(size)


def _unusable(header: Any) -> Refusal | None:
    if header.get("SOPClassUID") in (SegmentationStorage, LABEL_MAP):
        return Refusal(415, "The DICOM file is a segmentation: send the images themselves.")
    if any(keyword not in header for keyword in ("Rows", "Columns", "PixelData")):
        return Refusal(415, "The DICOM file holds no image: send the images of one series.")
    photometric = header.get("PhotometricInterpretation")
    if header.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return Refusal(415, "The DICOM image is in colour: send the grey images of the scanner.")
    return None
