"""Zip and gzip, counted while they are unpacked: what their headers promise is not trusted."""

import gzip
from collections.abc import Callable, Iterator
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from tumorseg.imaging.decode import MAX_SLICES, MAX_UNPACKED, Refusal, Rejected

ZIP = b"PK\x03\x04"
EMPTY_ZIP = b"PK\x05\x06"
GZIP = b"\x1f\x8b"
_MEMBERS = 4 * MAX_SLICES  # files in a zip: a series, and what lies beside it
_CHUNK = 1024**2

_TOO_LARGE = Refusal(
    413, f"The file is larger than {MAX_UNPACKED // 1024**2} MiB unpacked: send a part of it."
)


def unzip(data: bytes) -> Iterator[bytes]:
    """Yields the contents of a zip's files, one after the other.

    Raises:
        Rejected: 400 if it is damaged or locked, 413 if it is too large unpacked, 415 if it holds
            another zip or is compressed in a way that is not read.
    """
    # Each entry of the directory starts so; zipfile would first make an object of every one.
    if data.count(b"PK\x01\x02") > _MEMBERS:
        raise Rejected(413, f"The zip holds more than {_MEMBERS} files: send one series a zip.")
    left = MAX_UNPACKED
    try:
        with ZipFile(BytesIO(data)) as archive:
            for member in archive.infolist():
                if member.flag_bits & 1:
                    raise Rejected(400, "The zip is locked with a password: send it without one.")
                # Bzip2's and LZMA's memory is chosen by the file.
                if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                    raise Rejected(415, "The zip uses a rare compression: zip it with Deflate.")
                with archive.open(member) as file:
                    content = file.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise Rejected(*_TOO_LARGE)
                if content.startswith((ZIP, EMPTY_ZIP)):
                    raise Rejected(415, "The zip holds another zip: unpack that one first.")
                yield content
    except Rejected:
        raise
    except Exception:  # zipfile and zlib share no exception
        raise Rejected(400, "The zip is damaged or cut short: zip the series again.") from None


def gunzip(data: bytes, wanted: Callable[[bytes], bool], refusal: Refusal) -> BytesIO:
    """Unpacks a gzip file.

    Args:
        data: Its bytes.
        wanted: Tells from the first MiB whether the rest is worth unpacking.
        refusal: What is raised if it is not.

    Raises:
        Rejected: 400 if it is damaged, 413 if it is too large unpacked, or `refusal`.
    """
    unpacked = BytesIO()
    try:
        with gzip.open(BytesIO(data)) as file:
            while chunk := file.read(_CHUNK):
                if not unpacked.tell() and not wanted(chunk):
                    raise Rejected(*refusal)
                if unpacked.tell() + len(chunk) > MAX_UNPACKED:
                    raise Rejected(*_TOO_LARGE)
                unpacked.write(chunk)
    except Rejected:
        raise
    except Exception:  # gzip and zlib share no exception
        raise Rejected(400, "The gzip file is damaged or cut short: export it again.") from None
    unpacked.seek(0)
    return unpacked
