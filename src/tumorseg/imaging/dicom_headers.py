"""DICOM headers: only what is needed is read, and nothing that grows out of bounds when parsed.

pydicom parses a value or a sequence when it is asked for, and then a number of two bytes takes half
a KiB of memory, and an empty item of eight bytes somewhat more. So all that may be asked for is
bounded while it is still bytes.
"""

from io import BytesIO
from typing import Any

import pydicom
from pydicom import config
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tumorseg.imaging.decode import Refusal, Rejected
from tumorseg.imaging.dicom_pixels import frames_in

# pydicom would otherwise quote values that it doubts.
config.settings.reading_validation_mode = config.IGNORE

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
_OFFSETS = (0x7FE00001, 0x7FE00002)
_TABLE, _TABLE_DATA = 0x00283000, 0x00283006  # ModalityLUTSequence and the LUTData in it
_GROUPS = (0x52009229, 0x52009230)  # of all frames together, and of each
_PRIVATE_META = 0x00020102
_CHARACTER_SETS = (b"\x08\0\x05\0", b"\0\x08\0\x05")  # the tag in either byte order
_ITEMS = (b"\xfe\xff\0\xe0", b"\xff\xfe\xe0\0")

# Over all files of an upload. A large series of slices with long headers needs less than half.
_MAX_READS = 2_000_000
_MAX_HEADER = 8 * 1024 * 1024
_MAX_ITEMS = 200_000
# Of one value, in bytes. Names have some hundreds, windows and places some dozens.
_MAX_VALUE = 1024
_MAX_TABLE = 256 * 1024  # 65,536 entries of two bytes are the most that there can be
# Scanners put private values among the groups: some KiB a frame, and a whole protocol for all.
_MAX_GROUPS = 1024 * 1024
_MAX_GROUPS_A_FRAME = 8 * 1024
# What remains bytes, or becomes a sequence. A file may state another kind for any of its values.
_BULKY: set[str | None] = {None, "UN", "SQ", "OB", "OW", "OV"}

_TOO_LONG = Refusal(413, "The DICOM headers are too long: export the series without extras.")


class Reader:
    """Reads headers and counts what that takes over all files of an upload."""

    def __init__(self) -> None:
        self.reads = _MAX_READS
        self.header = _MAX_HEADER
        self.items = _MAX_ITEMS

    def read(self, data: bytes) -> Dataset:
        """The wanted elements of one file, its pixels still encoded.

        Raises:
            Rejected: Its headers would take too much time or memory, or it is deflated.
        """
        file = _Counted(data, self)
        file.seek(132)
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        _check_lengths(meta, {_PRIVATE_META: _MAX_HEADER}, _BULKY)
        # pydicom would inflate the whole file, whatever comes of it.
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise Rejected(415, "The DICOM file is deflated as a whole: export it uncompressed.")
        file.seek(0)
        dataset = pydicom.dcmread(file, specific_tags=_TAGS)
        check_length(dataset, "NumberOfFrames")
        groups = _MAX_GROUPS + _MAX_GROUPS_A_FRAME * frames_in(dataset)
        longer = dict.fromkeys(_GROUPS, groups) | dict.fromkeys(_OFFSETS, _MAX_HEADER)
        longer |= {_TABLE: _MAX_TABLE, _PIXEL_DATA: len(data)}
        self.header -= _check_lengths(dataset, longer, _BULKY)
        if self.header < 0:
            raise Rejected(*_TOO_LONG)
        for table in dataset.get("ModalityLUTSequence") or []:
            _check_lengths(table, {_TABLE_DATA: _MAX_TABLE}, _BULKY | {"US", "SS"})
        return dataset


def check_length(dataset: Dataset, name: str) -> None:
    """Raises Rejected if an element, which need not be there, is too long to be parsed."""
    if name in dataset and _length(dataset.get_item(name)) > _MAX_VALUE:
        raise Rejected(*_TOO_LONG)


def _check_lengths(dataset: Dataset, longer: dict[int, int], bulky: set[str | None]) -> int:
    """Compares all elements that are not parsed yet with what each may have.

    Args:
        dataset: Its elements; those in its sequences are not looked at.
        longer: Tag → bytes, where that is not `_MAX_VALUE`.
        bulky: The kinds of value that may be longer.

    Returns:
        How many bytes there are in all, without the pixels.
    """
    total = 0
    for element in dataset.values():
        length = _length(element)
        if length > _MAX_VALUE and (length > longer.get(element.tag, 0) or element.VR not in bulky):
            raise Rejected(*_TOO_LONG)
        total += length if element.tag != _PIXEL_DATA else 0
    return total


def _length(element: Any) -> int:
    """The bytes of an element that is not parsed yet, or else 0."""
    return len(element.value) if isinstance(element, RawDataElement) and element.value else 0


class _Counted(BytesIO):
    """A file that refuses to be read in millions of tiny pieces."""

    def __init__(self, data: bytes, reader: Reader) -> None:
        super().__init__(data)
        self._reader = reader
        self._tag = b""

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self._reader.reads -= 1
        # Of sequences that are parsed at once and of those within a value.
        self._reader.items -= sum(found.count(item) for item in _ITEMS)
        # This one value is parsed as soon as it is read; what is read before is its tag and length.
        if (
            self._reader.reads < 0
            or self._reader.items < 0
            or (len(found) > _MAX_VALUE and self._tag in _CHARACTER_SETS)
        ):
            raise Rejected(*_TOO_LONG)
        if size == 8:
            self._tag = found[:4]
        return found
