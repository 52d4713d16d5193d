"""DICOM files: their headers, read within limits, and their frames, decoded.

pydicom parses a value or a sequence when it is asked for. A number of two bytes then takes half a
KiB of memory, and an empty item of eight bytes somewhat more, so both are counted beforehand.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from numpy.typing import NDArray
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset, read_partial
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
    SegmentationStorage,
)

from tumorseg.imaging.study import Refusal, Rejected, check_scans

# pydicom would otherwise quote invalid values in warnings.
config.settings.reading_validation_mode = config.IGNORE

SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")  # the second: label maps

# Of the patient only what a segmentation has to repeat (types 1 and 2 in the standard).
_KEYWORDS = (
    "SpecificCharacterSet PatientID PatientName PatientBirthDate PatientSex StudyInstanceUID "
    "StudyID StudyDate StudyTime AccessionNumber ReferringPhysicianName SeriesInstanceUID "
    "SOPClassUID SOPInstanceUID FrameOfReferenceUID PositionReferenceIndicator Modality ImageType "
    "InstanceNumber Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation "
    "PlanarConfiguration BitsAllocated BitsStored HighBit PixelRepresentation "
    "ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness "
    "RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence WindowCenter WindowWidth "
    "VOILUTFunction LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "ExtendedOffsetTable ExtendedOffsetTableLengths"
)
TAGS = [tag_for_keyword(keyword) for keyword in _KEYWORDS.split()]
_WANTED = frozenset(TAGS)
_PIXELS = 0x7FE00010
_ITEMS = (b"\xfe\xff\0\xe0", b"\xff\xfe\xe0\0")  # what begins an item, in either byte order
_UNDEFINED = 0xFFFFFFFF  # the length of a sequence that ends with a delimiter

_MAX_HEADER = 8 * 1024 * 1024  # bytes of one file before its pixels
_PARSED_AT_ONCE = (0x00020010, 0x00080005)  # TransferSyntaxUID, SpecificCharacterSet
_MAX_PARSED_AT_ONCE = 1024  # bytes of each
# Over all files of an upload; a large series of slices with long headers needs less than half.
_MAX_PARTS = 1_000_000  # elements, and values of multi-valued text
_MAX_READ = 16 * 1024 * 1024  # bytes of elements that are kept
_PARTS_OF_ITEM = 5  # an item of a sequence takes as much memory as several values
_MAX_RLE = 4 * 1024 * 1024  # bytes of a frame: it may unpack to 64 times as much


@dataclass(frozen=True)
class DicomFile:
    """One DICOM file."""

    header: Dataset  # the elements that are needed here, without the pixels
    data: bytes  # the whole file
    pixels: int | None  # offset in `data` of the value of PixelData; None if there is none


class HeaderReader:
    """Reads headers; the limits apply to all files of an upload together."""

    def __init__(self) -> None:
        self._parts = _MAX_PARTS
        self._bytes = _MAX_READ

    def read(self, data: bytes) -> DicomFile:
        """Reads the needed elements of one file.

        Raises:
            Rejected: The headers would take too much time or memory, or the file is deflated.
        """
        start = data[:_MAX_HEADER]
        # Sequences without a length are parsed at once.
        self._spend(parts=_PARTS_OF_ITEM * sum(start.count(item) for item in _ITEMS))
        file = BytesIO(start)
        file.seek(132)
        meta = read_dataset(file, False, True, stop_when=_after_meta)
        # pydicom would inflate the whole file.
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise Rejected(415, "The DICOM file is deflated as a whole: export it uncompressed.")
        file.seek(0)
        kept_from: int | None = None  # offset of the element that is being kept
        pixels: int | None = None

        def at_pixels(tag: int, kind: str | None, length: int) -> bool:
            nonlocal kept_from, pixels
            _check_length(tag, length)
            here = file.tell()
            self._spend(parts=1, size=here - kept_from if kept_from is not None else 0)
            kept_from = here if tag in _WANTED or length == _UNDEFINED else None
            if tag == _PIXELS:
                pixels = here
            return tag >= _PIXELS

        header = read_partial(file, stop_when=at_pixels, specific_tags=TAGS)
        self._spend(parts=start.count(b"\\", 0, pixels))
        if pixels is None and len(start) < len(data):
            raise _too_long()
        return DicomFile(header, data, pixels)

    def _spend(self, parts: int, size: int = 0) -> None:
        self._parts -= parts
        self._bytes -= size
        if min(self._parts, self._bytes) < 0:
            raise _too_long()


def _too_long() -> Rejected:
    return Rejected(413, "The DICOM headers are too long: export the series without extras.")


def _check_length(tag: int, length: int) -> None:
    if tag in _PARSED_AT_ONCE and length > _MAX_PARSED_AT_ONCE:
        raise _too_long()


def _after_meta(tag: int, kind: str | None, length: int) -> bool:
    _check_length(tag, length)
    return tag >> 16 != 2


def unusable(header: Any, has_pixels: bool = True) -> Refusal | None:
    """Why a file is not a grey image, by its header; None if it is one."""
    if header.get("SOPClassUID") in SEGMENTATIONS:
        return Refusal(415, "The DICOM file is a segmentation: send the images themselves.")
    if not has_pixels or any(keyword not in header for keyword in ("Rows", "Columns")):
        return Refusal(415, "The DICOM file holds no image: send the images of one series.")
    photometric = header.get("PhotometricInterpretation")
    if header.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return Refusal(415, "The DICOM image is in colour: send the grey images of the scanner.")
    return None


def frames_in(header: Dataset) -> int:
    """NumberOfFrames of a file; 1 if it is missing."""
    return max(int(header.get("NumberOfFrames") or 1), 1)


def frames(file: DicomFile) -> NDArray[Any]:
    """Decodes the frames of a file; the caller has checked the size in the header.

    Returns:
        The stored values, shape (frames, H, W).

    Raises:
        Rejected: 415 if their compression is not supported, 400 if they do not match the header.
    """
    header = file.header
    syntax = header.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise Rejected(
            415,
            "The DICOM image is compressed, but not as JPEG, JPEG 2000, JPEG-LS or RLE: export it "
            "uncompressed.",
        )
    if syntax.is_compressed:
        _check_compressed(file, syntax)
    values = pixel_array(BytesIO(file.data))
    return values.reshape(frames_in(header), int(header.Rows), int(header.Columns))


def _check_compressed(file: DicomFile, syntax: str) -> None:
    """Compares each frame's own header, which decoders go by, with that of the file."""
    header = file.header
    wanted = (int(header.Columns), int(header.Rows))
    extended = None
    if "ExtendedOffsetTable" in header:
        extended = (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
    encoded = BytesIO(file.data)
    encoded.seek(file.pixels or 0)
    found = generate_frames(encoded, number_of_frames=frames_in(header), extended_offsets=extended)
    for frame in found:
        if syntax == RLELossless:
            if len(frame) > _MAX_RLE:
                raise Rejected(413, "The DICOM image is too large for RLE: export it uncompressed.")
        elif _size(frame, syntax) != wanted:
            raise Rejected(400, "The DICOM image is damaged: export it again and resend it.")
        elif syntax in JPEGTransferSyntaxes:
            check_scans(frame)


def _size(frame: bytes, syntax: str) -> tuple[int, int] | None:
    """The width and height that a compressed frame states."""
    if syntax not in JPEGLSTransferSyntaxes:
        reader = JpegImageFile if syntax in JPEGTransferSyntaxes else Jpeg2KImageFile
        with reader(BytesIO(frame)) as image:
            return image.size
    place = 2
    while frame[place : place + 1] == b"\xff":
        marker, length = struct.unpack_from(">xBH", frame, place)
        if marker == 0xF7:  # the frame header of ITU-T T.87
            height, width = struct.unpack_from(">HH", frame, place + 5)
            return width, height
        place += 2 + length
    return None
