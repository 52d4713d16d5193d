"""Reads image files once: what each is, a thumbnail of it, and whether it can be used at all.

What was found is remembered by the content's hash, so that an unchanged file is only hashed.
"""

import hashlib
import io
import json
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tumorseg.core.files import leads_out
from tumorseg.data.memory import Memory
from tumorseg.data.similarity import SIDE, thumbnail
from tumorseg.imaging.preprocess import COLOURED, coloured_share, to_grey

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
FORMATS = {"JPEG": {".jpg", ".jpeg"}, "PNG": {".png"}}
MAX_BYTES = 100 * 2**20
MIN_SIDE = 8  # pixels; fewer make no thumbnail
ORIENTATION = 0x0112  # EXIF's tag
# What Pillow raises over damaged files: its own errors, and whatever its parsers stumble over.
BROKEN = (
    *(OSError, SyntaxError, EOFError, struct.error, zlib.error),
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
)
AT_ONCE = 64  # files in flight: bounds the memory, whatever the number of files
VERSION = 4  # of the facts below; another number forgets what was remembered


@dataclass(frozen=True)
class Facts:
    """What is known about one image file.

    Attributes:
        sha256: Of the file's bytes; None where it could not be read.
        format: `JPEG` or `PNG`.
        mode: As Pillow names it.
        width: In pixels, upright as EXIF says.
        height: In pixels.
        rotated: Whether EXIF turns or mirrors it.
        coloured: Whether its channels differ clearly in more than a few pixels.
        mean: Of the grey values, 0–255.
        std: Of the grey values.
        problem: A finding's name, if the file cannot be used.
        why: A sentence to it.
    """

    sha256: str | None = None
    format: str | None = None
    mode: str | None = None
    width: int = 0
    height: int = 0
    rotated: bool = False
    coloured: bool = False
    mean: float = float("nan")
    std: float = float("nan")
    problem: str | None = None
    why: str | None = None


Scanned = tuple[Facts, NDArray[np.uint8]]
BLANK = np.zeros((SIDE, SIDE), np.uint8)


def scan(paths: Iterable[Path], root: Path, max_side: int, memory: Path) -> Iterator[Scanned]:
    """Examines files on all cores, in their order.

    Args:
        paths: The files; one that is missing or broken gets a problem, not an exception.
        root: The folder that they lie in; one that leads out of it is not opened.
        max_side: A picture with a longer side, in pixels, is not decoded.
        memory: The file that remembers.

    Yields:
        Facts and the thumbnail, uint8 of shape (48, 48), black where there is a problem.
    """
    waiting = iter(paths)
    with (
        Memory(memory, f"facts_{VERSION}") as store,
        ThreadPoolExecutor() as pool,  # decoding and hashing release the interpreter's lock
    ):
        while batch := list(islice(waiting, AT_ONCE)):
            yield from pool.map(lambda path: _scan(path, root, max_side, store), batch)


def _scan(path: Path, root: Path, max_side: int, store: Memory) -> Scanned:
    if leads_out(path, root):
        return Facts(problem="outside", why="is a link that leads out of the data folder"), BLANK
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            return Facts(problem="not_a_file", why="is no regular file"), BLANK
        if status.st_size > MAX_BYTES:
            return Facts(problem="too_large", why=f"has more than {MAX_BYTES >> 20} MiB"), BLANK
        content = path.read_bytes()
    except FileNotFoundError:
        return Facts(problem="missing_file", why="is listed, but there is no such file"), BLANK
    except OSError as error:
        return Facts(problem="unreadable", why=f"cannot be read: {error.strerror}"), BLANK
    digest = hashlib.sha256(content).hexdigest()
    key = f"{digest} {max_side}"
    if (known := store.get(key)) is not None:
        small = np.frombuffer(known[: SIDE * SIDE], np.uint8).reshape(SIDE, SIDE)
        return Facts(**json.loads(known[SIDE * SIDE :])), small
    facts, small = _examine(content, digest, max_side)
    store.put(key, small.tobytes() + json.dumps(asdict(facts)).encode())
    return facts, small


def _examine(content: bytes, digest: str, max_side: int) -> Scanned:
    def unusable(problem: str, why: str) -> Scanned:
        return Facts(sha256=digest, problem=problem, why=why), BLANK

    if not content:
        return unusable("unreadable", "is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow only warns about is checked below
            with Image.open(io.BytesIO(content), formats=list(FORMATS)) as picture:
                width, height = picture.size
                if max(width, height) > max_side:
                    allowed = f"validate.max_side allows {max_side} pixels"
                    return unusable("too_large", f"is {width}×{height}; {allowed}")
                if min(width, height) < MIN_SIDE:
                    return unusable("too_small", f"is {width}×{height}, which shows nothing")
                picture.load()
                rotated = picture.getexif().get(ORIENTATION, 1) != 1
                # A JPEG with several pictures in it, as phones write, calls itself MPO.
                kind = "JPEG" if picture.format == "MPO" else picture.format
                mode, grey = picture.mode, to_grey(picture)
                coloured = coloured_share(picture) > COLOURED
    except Image.UnidentifiedImageError:
        damaged = content.startswith(SIGNATURES)
        why = "has a damaged header" if damaged else "is neither JPEG nor PNG"
        return unusable("unreadable", why)
    except Image.DecompressionBombError:
        return unusable("too_large", "claims more pixels than are safe to decode")
    except BROKEN as error:
        return unusable("unreadable", f"cannot be decoded: {error}")
    facts = Facts(
        sha256=digest,
        format=kind,
        mode=mode,
        width=grey.shape[1],
        height=grey.shape[0],
        rotated=rotated,
        coloured=coloured,
        mean=float(grey.mean()),
        std=float(grey.std()),
    )
    return facts, thumbnail(grey)

