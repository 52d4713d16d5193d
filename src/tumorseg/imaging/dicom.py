"""DICOM files: their headers within bounds, and their frames decoded.

pydicom parses a value or a sequence when it is asked for, and then a number of two bytes takes half
a KiB of memory, and an empty item of eight bytes somewhat more. So the length that a header states
for each value is checked before the value is read.
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

from tumorseg.imaging.study import MAX_SCANS, MAX_SLICES, Refusal, Rejected, has_many_scans

# pydicom would otherwise quote values that it doubts.
config.settings.reading_validation_mode = config.IGNORE

SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")  # the second: label maps

# The identifiers here are those that the segmentation standard requires of an answer where they
# are known (types 1 and 2); everything else about the patient is never even read.
_IDENTIFIERS = (
    "SpecificCharacterSet PatientID PatientName PatientBirthDate PatientSex StudyInstanceUID "
    "StudyID StudyDate StudyTime AccessionNumber ReferringPhysicianName SeriesInstanceUID "
    "SOPClassUID SOPInstanceUID FrameOfReferenceUID PositionReferenceIndicator"
)
_DISPLAY = (
    "Modality ImageType InstanceNumber Rows Columns NumberOfFrames SamplesPerPixel "
    "PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored HighBit "
    "PixelRepresentation ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness "
    "RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence WindowCenter WindowWidth "
    "VOILUTFunction LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "ExtendedOffsetTable ExtendedOffsetTableLengths"
)
TAGS = [tag_for_keyword(keyword) for keyword in f"{_IDENTIFIERS} {_DISPLAY}".split()]
_WANTED = frozenset(TAGS)
_PIXELS = 0x7FE00010
_ITEMS = (b"\xfe\xff\0\xe0", b"\xff\xfe\xe0\0")  # what begins an item, in either byte order
_UNDEFINED = 0xFFFFFFFF  # the length of a sequence that ends with a delimiter

# Over all files of an upload. A large series of slices with long headers needs less than half.
_MAX_ELEMENTS = 1_000_000
_MAX_ITEMS = 200_000
_MAX_READ = 16 * 1024 * 1024  # bytes of headers that are read and not passed over
# Of one file, before its pixels. Sequences without a length are parsed at once.
_MAX_HEADER = 8 * 1024 * 1024
# Of one value, in bytes. Names have some hundreds, windows and places some dozens.
_MAX_VALUE = 1024
_MAX_TABLE = 256 * 1024  # 65,536 entries of two bytes are the most that there can be
# Scanners put private values among the groups: some KiB a frame, and a whole protocol for all.
_MAX_GROUPS = 1024 * 1024 + 8 * 1024 * MAX_SLICES
_LUT_DATA = 0x00283006
_LONGER = {
    0x00020102: _MAX_HEADER,  # private information about the file
    0x00283000: _MAX_TABLE,  # ModalityLUTSequence
    _LUT_DATA: _MAX_TABLE,
    0x52009229: _MAX_GROUPS,  # functional groups of all frames together
    0x52009230: _MAX_GROUPS,  # and of each
    0x7FE00001: _MAX_HEADER,  # ExtendedOffsetTable
    0x7FE00002: _MAX_HEADER,  # ExtendedOffsetTableLengths
}
# What remains bytes, or becomes a sequence. A file may state another kind for any of its values.
_BULKY: set[str | None] = {None, "UN", "SQ", "OB", "OW", "OV"}
_MAX_RLE = 4 * 1024 * 1024  # bytes of a frame: it may unpack to 64 times as much


@dataclass(frozen=True)
class DicomFile:
    """One DICOM file.

    Attributes:
        header: The elements that are needed here, without the pixels.
        data: The whole file.
        pixels: Where in it the value of PixelData starts; None where there is none.
    """

    header: Dataset
    data: bytes
    pixels: int | None


class HeaderReader:
    """Reads headers; the limits count for all files of an upload together."""

    def __init__(self) -> None:
        self._elements = _MAX_ELEMENTS
        self._items = _MAX_ITEMS
        self._bytes = _MAX_READ

    def read(self, data: bytes) -> DicomFile:
        """The wanted elements of one file.

        Raises:
            Rejected: Its headers would take too much time or memory, or it is deflated.
        """
        start = data[:_MAX_HEADER]
        # Of sequences that are parsed at once and of those within a value.
        self._items -= sum(start.count(item) for item in _ITEMS)
        if self._items < 0:
            raise too_long()
        file = BytesIO(start)
        file.seek(132)
        meta = read_dataset(file, False, True, stop_when=_after_meta)
        # pydicom would inflate the whole file, whatever comes of it.
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise Rejected(415, "The DICOM file is deflated as a whole: export it uncompressed.")
        file.seek(0)
        begun: int | None = None  # where an element begins that is read

        def at_pixels(tag: int, kind: str | None, length: int) -> bool:
            nonlocal begun
            self._charge(file.tell(), begun)
            wanted = tag in _WANTED
            begun = file.tell() if wanted or length == _UNDEFINED else None
            if wanted and length != _UNDEFINED:
                _check_length(tag, kind, length)
            return tag >= _PIXELS

        header = read_partial(file, stop_when=at_pixels, specific_tags=TAGS)
        self._charge(file.tell(), begun)
        pixels = _value_of_pixels(start, file.tell(), header)
        if pixels is None and len(start) < len(data):
            raise too_long()
        for table in header.get("ModalityLUTSequence") or []:
            for element in table.values():
                check_parsed_length(table, element.tag)
        return DicomFile(header, data, pixels)

    def _charge(self, place: int, begun: int | None) -> None:
        self._elements -= 1
        if begun is not None:
            self._bytes -= max(place - begun, 0)
        if min(self._elements, self._bytes) < 0:
            raise too_long()


def too_long() -> Rejected:
    """What is raised about headers that would take too much memory."""
    return Rejected(413, "The DICOM headers are too long: export the series without extras.")


def check_parsed_length(dataset: Dataset, key: Any) -> None:
    """Raises Rejected if an element, which need not be there, is too long to be parsed.

    Args:
        dataset: A header or an item of a sequence in it.
        key: Keyword or tag.
    """
    element = dataset.get_item(key) if key in dataset else None
    # A value that is not parsed yet is still bytes.
    if element is not None and isinstance(element.value, bytes):
        _check_length(element.tag, element.VR, len(element.value))


def _check_length(tag: int, kind: str | None, length: int) -> None:
    if length <= _MAX_VALUE:
        return
    bulky = kind in _BULKY or (tag == _LUT_DATA and kind in ("US", "SS"))
    if not bulky or length > _LONGER.get(tag, 0):
        raise too_long()


def _after_meta(tag: int, kind: str | None, length: int) -> bool:
    if tag >> 16 != 2:
        return True
    _check_length(tag, kind, length)
    return False


def _value_of_pixels(start: bytes, place: int, header: Dataset) -> int | None:
    """Where the value of PixelData begins, if an element at `place` is that."""
    implicit, little = header.original_encoding
    found = start[place : place + 12]
    if len(found) < 8 or struct.unpack("<HH" if little else ">HH", found[:4]) != (0x7FE0, 0x10):
        return None
    return place + (8 if implicit else 12)


def unusable(header: Any, has_pixels: bool = True) -> Refusal | None:
    """Why a file is no grey image, by its header; None if it is one."""
    if header.get("SOPClassUID") in SEGMENTATIONS:
        return Refusal(415, "The DICOM file is a segmentation: send the images themselves.")
    if not has_pixels or any(keyword not in header for keyword in ("Rows", "Columns")):
        return Refusal(415, "The DICOM file holds no image: send the images of one series.")
    photometric = header.get("PhotometricInterpretation")
    if header.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return Refusal(415, "The DICOM image is in colour: send the grey images of the scanner.")
    return None


def frames_in(header: Dataset) -> int:
    """How many frames a file says it has; 1 where it says nothing."""
    return int(header.get("NumberOfFrames") or 1)


def frames(file: DicomFile) -> NDArray[Any]:
    """Decodes the frames of a file, whose size the caller has checked.

    Returns:
        The stored values, shape (frames, H, W).

    Raises:
        Rejected: 415 if they are compressed in a way that cannot be read here, 400 if they are
            not what the header says.
    """
    header = file.header
    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        known = f" ({syntax.name})" if syntax.is_transfer_syntax else ""
        raise Rejected(
            415,
            f"The DICOM image is compressed in a way that is not read here{known}: export it "
            "uncompressed.",
        )
    if syntax.is_compressed:
        _check_compressed(file, syntax)
    values = pixel_array(BytesIO(file.data))
    return values.reshape(frames_in(header), int(header.Rows), int(header.Columns))


def _check_compressed(file: DicomFile, syntax: str) -> None:
    """Compares each frame's own header with the file's: a decoder would believe the former."""
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
        elif syntax in JPEGTransferSyntaxes and has_many_scans(frame):
            raise Rejected(
                413, f"The DICOM image has more than {MAX_SCANS} scans: export it uncompressed."
            )


def _size(frame: bytes, syntax: str) -> tuple[int, int] | None:
    """The width and height that a compressed frame states."""
    if syntax in JPEGLSTransferSyntaxes:
        return _jpeg_ls_size(frame)
    reader = JpegImageFile if syntax in JPEGTransferSyntaxes else Jpeg2KImageFile
    with reader(BytesIO(frame)) as image:
        return image.size


def _jpeg_ls_size(frame: bytes) -> tuple[int, int] | None:
    """The width and height in the frame header (ITU-T T.87, marker FFF7) of a JPEG-LS image."""
    place = 2
    while frame[place : place + 1] == b"\xff":
        marker, length = struct.unpack_from(">xBH", frame, place)
        if marker == 0xF7:
            height, width = struct.unpack_from(">HH", frame, place + 5)
            return width, height
        place += 2 + length
    return None
