"""Decodes one file of any supported kind to grey slices."""

import gzip
from collections.abc import Iterator
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from tumorseg.imaging.preprocess import coloured_share, to_grey
from tumorseg.imaging.study import (
    MAX_BYTES,
    MAX_SLICES,
    MAX_UNPACKED,
    MAX_VOLUME_BYTES,
    TOO_MANY_BYTES,
    TOO_MANY_VOLUME_BYTES,
    WRONG_KIND,
    Refusal,
    Rejected,
    Study,
    check_scans,
    check_size,
    damage_rejected,
    silence_readers,
)

# The readers themselves, since Image.open warns about sizes that our own limit refuses anyway.
_PICTURES: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
}
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06")  # with and without an entry
_GZIP = b"\x1f\x8b"
_TOO_LARGE = Refusal(
    413, f"The file is larger than {MAX_UNPACKED // 1024**2} MiB unpacked: send a part of it."
)
_MEMBERS = 4 * MAX_SLICES  # files in a zip: a series and other files


def decode(data: bytes) -> Study:
    """Decodes one file of any allowed kind: JPEG, PNG, DICOM, a zip of a DICOM series, NIfTI.

    The kind is found from the content, never from a name. Everything that headers declare is
    checked before any pixel is decoded.

    Args:
        data: The bytes of the file.

    Raises:
        Rejected: 400 for an empty, damaged, tiny or inconsistent file, 413 for one with too many
            bytes, pixels or slices, 415 for any other kind.
    """
    if not data:
        raise Rejected(400, "The file is empty: choose a picture and send it again.")
    for start, reader in _PICTURES.items():
        if data.startswith(start):
            return _picture(data, reader)
    return _volume(data)


def is_picture(data: bytes) -> bool:
    """Whether a file is JPEG or PNG by its first bytes, and not a volume."""
    return data.startswith(tuple(_PICTURES))


def _picture(data: bytes, reader: type[ImageFile]) -> Study:
    if len(data) > MAX_BYTES:
        raise Rejected(*TOO_MANY_BYTES)
    if reader is JpegImageFile:
        check_scans(data)
    with (
        damage_rejected("The picture is damaged or cut short: export it again and resend it."),
        reader(BytesIO(data)) as image,
    ):
        check_size(*image.size)
        image.load()
        return Study("picture", [to_grey(image)], colour=coloured_share(image))


def _volume(data: bytes) -> Study:
    is_dicom = data[128:132] == b"DICM"
    if not (is_dicom or data.startswith((*_ZIPS, _GZIP)) or _is_nifti(data)):
        # Nothing but a volume may be larger than a picture.
        raise Rejected(*(TOO_MANY_BYTES if len(data) > MAX_BYTES else WRONG_KIND))
    if len(data) > MAX_VOLUME_BYTES:
        raise Rejected(*TOO_MANY_VOLUME_BYTES)
    # These import pydicom and nibabel, which pictures do not need.
    from tumorseg.imaging.nifti import nifti_study
    from tumorseg.imaging.series import dicom_study

    silence_readers()
    with damage_rejected("The volume is damaged or cut short: export it again and resend it."):
        if is_dicom:
            return dicom_study([data])
        if data.startswith(_ZIPS):
            return dicom_study(_unzip(data))
        return nifti_study(_gunzip(data) if data.startswith(_GZIP) else BytesIO(data))


def _is_nifti(data: bytes) -> bool:
    return data[344:348] == b"n+1\0" or data[4:12] == b"n+2\0\r\n\x1a\n"


def _unzip(data: bytes) -> Iterator[bytes]:
    """Yields the contents of a zip's files; their sizes are measured, not taken from headers."""
    # Each entry of the directory starts so; zipfile would first make an object of every one.
    if data.count(b"PK\x01\x02") > _MEMBERS:
        raise Rejected(413, f"The zip holds more than {_MEMBERS} files: send one series a zip.")
    left = MAX_UNPACKED
    with (
        damage_rejected("The zip is damaged or cut short: zip the series again."),
        ZipFile(BytesIO(data)) as archive,
    ):
        for member in archive.infolist():
            # Bzip2 and LZMA let the file choose how much memory they take.
            if member.flag_bits & 1 or member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise Rejected(415, "The zip has a password or is not Deflate: zip it without.")
            with archive.open(member) as file:
                content = file.read(left + 1)
            left -= len(content)
            if left < 0:
                raise Rejected(*_TOO_LARGE)
            yield content


def _gunzip(data: bytes) -> BytesIO:
    """Unpacks a gzip file of a NIfTI volume."""
    with (
        damage_rejected("The gzip file is damaged or cut short: export it again."),
        gzip.open(BytesIO(data)) as file,
    ):
        content = file.read(MAX_UNPACKED + 1)
    if not _is_nifti(content):
        raise Rejected(*WRONG_KIND)
    if len(content) > MAX_UNPACKED:
        raise Rejected(*_TOO_LARGE)
    return BytesIO(content)
