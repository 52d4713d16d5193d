"""One uploaded file to the grey slices in it, or one sentence about why not."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from tumorseg.imaging.preprocess import Grey, to_grey

MAX_BYTES = 10 * 1024 * 1024  # of a picture
MAX_VOLUME_BYTES = 256 * 1024 * 1024  # of a volume as it is sent
MAX_UNPACKED = 512 * 1024 * 1024  # of the same without zip or gzip, in bytes
MAX_SLICES = 512
MAX_VOXELS = 512**3  # of all slices together: what a volume may hold decoded
MIN_SIDE = 16
# The network's input is padded to a square, so the longer side alone bounds the memory.
MAX_SIDE = 4096
# A progressive JPEG has about ten. Each is decoded over the whole picture, which takes tens
# of milliseconds where it is large, and hundreds of thousands fit into a file.
MAX_SCANS = 100

# The readers themselves, since Image.open warns about sizes that our own limit refuses anyway.
_READERS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
}
_COLOUR_STEP = 4  # in each direction: every 16th pixel tells the share of colour well enough
_CLEARLY = 24  # grey levels between channels: more than JPEG's artefacts in a grey picture


@dataclass(frozen=True)
class Study:
    """What was sent: one picture, or the slices of a volume.

    Attributes:
        kind: `picture` (JPEG or PNG), `dicom` or `nifti`.
        slices: Grey values, uint8, shape (H, W) each; within a volume all the same.
        spacing: Distance of rows and of columns, in mm; None where it is not known.
        thickness: Distance of neighbouring slices, in mm; None where it is not known or not the
            same throughout.
        colour: Share of a picture's pixels whose channels differ clearly, in [0, 1]; 0 elsewhere.
        source: What a volume's answer needs to lie on the same grid: a `DicomSource`, or the
            nibabel image without its values; None for a picture.
        modality: The kind of scanner in DICOM's terms, such as MR; None where it is not known.
    """

    kind: Literal["picture", "dicom", "nifti"]
    slices: list[Grey]
    spacing: tuple[float, float] | None = None
    thickness: float | None = None
    colour: float = 0.0
    source: Any = None
    modality: str | None = None


class Refusal(NamedTuple):
    """What `Rejected` says, as a constant.

    An exception must not be one: each time it is raised it keeps the frames that it passed, and in
    them what somebody sent.
    """

    status: int
    sentence: str


class Rejected(Exception):
    """An upload that cannot be used.

    Attributes:
        status: The HTTP status that says so: 400, 413 or 415.
        sentence: What is wrong and what to do, for the person who sent it.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


TOO_MANY_BYTES = Refusal(
    413, f"The file is larger than {MAX_BYTES // 1024**2} MiB: send a smaller one."
)
TOO_MANY_VOLUME_BYTES = Refusal(
    413, f"The volume is larger than {MAX_VOLUME_BYTES // 1024**2} MiB: send a part of it."
)
WRONG_KIND = Refusal(
    415,
    "The file is neither JPEG nor PNG, nor DICOM (alone or a zip of one series), nor NIfTI: "
    "convert it to one of them.",
)
TOO_MANY_SCANS = Refusal(
    413, f"The JPEG has more than {MAX_SCANS} scans: save it again as PNG or as an ordinary JPEG."
)


def decode(data: bytes) -> Study:
    """Decodes one uploaded file of any allowed kind, told by its content, never by its name.

    Everything that the header tells is checked before any pixel is decoded.

    Args:
        data: The bytes of the file.

    Raises:
        Rejected: 400 for an empty, damaged, tiny or inconsistent file, 413 for one with too many
            bytes, pixels or slices, 415 for any other kind.
    """
    if not data:
        raise Rejected(400, "The file is empty: choose a picture and send it again.")
    for start, reader in _READERS.items():
        if data.startswith(start):
            if len(data) > MAX_BYTES:
                raise Rejected(*TOO_MANY_BYTES)
            if reader is JpegImageFile and has_many_scans(data):
                raise Rejected(*TOO_MANY_SCANS)
            return _picture(data, reader)
    # Pictures must not wait for the import of the libraries that volumes need.
    from tumorseg.imaging import volumes

    return volumes.decode_volume(data)


def has_many_scans(jpeg: bytes) -> bool:
    """Whether a JPEG may have more scans than are decoded here.

    Each starts with these two bytes. They hardly ever occur anywhere else; but walking from segment
    to segment as the decoder does would not always find all that the decoder finds.
    """
    return jpeg.count(b"\xff\xda") > MAX_SCANS


def is_picture(data: bytes) -> bool:
    """Whether a file is JPEG or PNG by its first bytes, and not a volume."""
    return data.startswith(tuple(_READERS))


def check_size(width: int, height: int) -> None:
    """Raises Rejected if a slice of this size, in pixels, is too large or too small."""
    if max(width, height) > MAX_SIDE:
        raise Rejected(
            413, f"The picture is larger than {MAX_SIDE} pixels a side: scale it down first."
        )
    if min(width, height) < MIN_SIDE:
        raise Rejected(
            400, f"The picture is smaller than {MIN_SIDE} pixels a side: send the whole slice."
        )


def check_count(slices: int, width: int, height: int) -> None:
    """Raises Rejected if a volume has too many slices, or too many voxels in all of them."""
    check_size(width, height)
    if slices > MAX_SLICES:
        raise Rejected(413, f"The volume has more than {MAX_SLICES} slices: send a part of it.")
    if slices * width * height > MAX_VOXELS:
        raise Rejected(
            413,
            f"The volume has more than {MAX_VOXELS // 10**6} million voxels: send a part of it.",
        )


def is_distance(millimetres: float) -> bool:
    """Whether pixels or slices can be so far apart; areas and volumes stay finite then."""
    return 0.001 <= millimetres <= 1000


def _picture(data: bytes, reader: type[ImageFile]) -> Study:
    try:
        with reader(BytesIO(data)) as image:
            check_size(*image.size)
            image.load()
            return Study("picture", [to_grey(image)], colour=_colour(image))
    except Rejected:
        raise
    except Exception:
        # Damaged files make Pillow raise almost anything: OSError, SyntaxError, struct.error, …
        raise Rejected(
            400, "The picture is damaged or cut short: export it again and resend it."
        ) from None


def _colour(image: Image.Image) -> float:
    if image.mode in ("L", "LA", "1") or image.mode.startswith(("I", "F")):
        return 0.0
    small = [max(side // _COLOUR_STEP, 1) for side in image.size]
    sample = image.resize((small[0], small[1]), Image.Resampling.NEAREST)
    red, green, blue = map(np.asarray, sample.convert("RGB").split())
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    return np.count_nonzero(brightest - darkest > _CLEARLY) / brightest.size
