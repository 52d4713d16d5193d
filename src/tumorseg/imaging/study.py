"""A decoded scan, the limits on what is decoded, and the exception for what is refused."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tumorseg.imaging.preprocess import Grey

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


class Rejected(Exception):
    """A scan that cannot be used.

    Attributes:
        status: The HTTP status that fits: 400 (damaged or inconsistent), 413 (too large) or 415
            (of a kind that is not read).
        sentence: What is wrong and what to do, for the person who sent it.

    Constants are `partial(Rejected, status, sentence)`: an exception that was raised keeps the
    frames that it passed, and in them the file that was sent, so none is raised twice.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


TOO_MANY_BYTES = partial(
    Rejected, 413, f"The file is larger than {MAX_BYTES // 1024**2} MiB: send a smaller one."
)
TOO_MANY_VOLUME_BYTES = partial(
    Rejected,
    413,
    f"The volume is larger than {MAX_VOLUME_BYTES // 1024**2} MiB: send a part of it.",
)
WRONG_KIND = partial(
    Rejected,
    415,
    "The file is neither JPEG nor PNG, nor DICOM (alone or a zip of one series), nor NIfTI: "
    "convert it to one of them.",
)


@dataclass(frozen=True)
class Study:
    """A decoded scan: one picture, or the slices of a volume."""

    kind: Literal["picture", "dicom", "nifti"]
    slices: list[Grey]  # uint8, shape (H, W) each; all the same shape
    spacing: tuple[float, float] | None = None  # of rows and of columns, in mm; None if unknown
    thickness: float | None = None  # distance of slices, in mm; None if unknown or not constant
    colour: float = 0.0  # share of a picture's pixels that are coloured, in [0, 1]
    source: Any = None  # grid of a volume: a `Stack`, or the nibabel image without its values
    modality: str | None = None  # kind of scanner in DICOM's terms, such as MR; None if unknown


@contextmanager
def damage_rejected(sentence: str) -> Iterator[None]:
    """Turns any exception into Rejected with status 400: decoders' errors have no common base."""
    try:
        yield
    except Rejected:
        raise
    except Exception:
        raise Rejected(400, sentence) from None


def check_size(width: int, height: int, slices: int = 1) -> None:
    """Raises Rejected if a picture, or a volume of such slices, is too large or too small."""
    if slices < 1:
        raise Rejected(400, "The volume holds no slice: export it again.")
    if min(width, height) < MIN_SIDE:
        raise Rejected(
            400, f"The picture is smaller than {MIN_SIDE} pixels a side: send the whole slice."
        )
    if max(width, height) > MAX_SIDE or slices > MAX_SLICES or slices * width * height > MAX_VOXELS:
        raise Rejected(
            413,
            f"The limits are {MAX_SIDE} pixels a side, {MAX_SLICES} slices and "
            f"{MAX_VOXELS // 10**6} million voxels: scale it down, or send a part of it.",
        )


def is_distance(millimetres: float) -> bool:
    """Whether pixels or slices can be so far apart; areas and volumes stay finite then."""
    return 0.001 <= millimetres <= 1000


def check_scans(jpeg: bytes) -> None:
    """Raises Rejected if a progressive JPEG may have too many scans."""
    # Each starts with these two bytes, which hardly ever occur elsewhere; walking from segment to
    # segment would not always find all that the decoder finds.
    if jpeg.count(b"\xff\xda") > MAX_SCANS:
        raise Rejected(
            413, f"The JPEG has more than {MAX_SCANS} scans: save it again as an ordinary one."
        )


def silence_readers() -> None:
    """Keeps pydicom, highdicom and nibabel from printing values of a file that they doubt."""
    for name in ("pydicom", "highdicom", "nibabel"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # Each time, since other code may have restored the filters in the meantime.
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|nibabel|tumorseg)\b")
