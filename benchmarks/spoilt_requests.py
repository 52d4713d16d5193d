"""Requests that the service must refuse with one sentence, and never with a 5xx."""

import gzip
import io
import stat
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tumorseg.imaging.decode import MAX_BYTES, Rejected, decode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.fuzz_inputs import inputs, whole
from tests.spoiling import spoilt
from tests.spoilt_pictures import PICTURES


@dataclass(frozen=True)
class Spoilt:
    """A request that must be refused.

    Attributes:
        name: What is wrong.
        path: Where it goes.
        sent: Keyword arguments for httpx.
        status: What it must be answered; None for any refusal from 400 to 499.
    """

    name: str
    path: str
    sent: dict[str, Any] = field(repr=False)
    status: int | None = None


def files() -> Iterator[tuple[str, bytes]]:
    """Damaged and hostile files: the data issue's corpus, and more of every kind."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(PICTURES):
            data = Path(scratch, str(number), "data")
            spoilt(data, [case])
            path = data / "train" / f"x0{case.suffix}"
            # What is no file, or none that a form can carry, is not for a service.
            if path.is_file() and stat.S_ISREG(path.stat().st_mode):
                yield case.name, path.read_bytes()[: MAX_BYTES + 1]
    for name, data in whole().items():
        yield f"{name}, half of it", data[: len(data) // 2]
        yield f"{name}, the first 150 bytes", data[:150]
        yield f"{name}, zeros after 400 bytes", data[:400] + bytes(max(len(data) - 400, 0))
    yield "PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(500)
    yield "program", b"\x7fELF\x02\x01\x01" + bytes(500)
    yield "HTML", b"<!doctype html><title>scan</title>"
    yield "random bytes", np.random.default_rng(0).bytes(5000)
    yield "one byte", b"\xff"
    yield "gzip bomb", gzip.compress(bytes(600 * 2**20), 9)
    yield "NIfTI of 32767³ voxels", _nifti((32767, 32767, 32767))
    yield "NIfTI of -5 voxels", _nifti((-5, 64, 64))
    yield "packed NIfTI of 32767³ voxels", gzip.compress(_nifti((32767, 32767, 32767)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(600 * 2**20))
    yield "zip bomb", packed.getvalue()
    several = io.BytesIO()
    with zipfile.ZipFile(several, "w") as archive:
        for number in range(5000):
            archive.writestr(f"../../{number}", b"x")
    yield "zip of 5000 paths that lead out", several.getvalue()
    pixels = io.BytesIO()
    Image.fromarray(np.zeros((4097, 20), np.uint8)).save(pixels, "PNG")
    yield "PNG of 4097 rows", pixels.getvalue()


def _nifti(shape: tuple[int, int, int]) -> bytes:
    """A NIfTI header that claims a shape, and 400 bytes for voxels."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return bytes(header) + bytes(400)


def corpus(fuzzed: int = 150) -> list[Spoilt]:
    """Every request that must be refused; those about files with the decoder's own status."""
    found = []
    stream = inputs(seed=5)
    damaged = ((f"fuzzed {name}", data) for name, data in (next(stream) for _ in range(fuzzed)))
    for name, data in [*files(), *damaged]:
        volume = not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
        try:
            study = decode(data)
        except Rejected as error:
            paths = ("/segment", "/segment/volume") if volume else ("/segment",)
            form = {"files": {"file": (name, data)}}
            # /segment takes fewer bytes than /segment/volume, so that only the class is the same.
            found += [Spoilt(name, p, form, None if volume else error.status) for p in paths]
        else:
            if study.kind == "picture":
                found.append(Spoilt(f"{name} as volume", "/segment/volume", _file(data), 415))
    return found + list(_forms())


def _file(data: bytes, name: str = "file") -> dict[str, Any]:
    return {"files": {name: ("x", data)}}


def _forms() -> Iterator[Spoilt]:
    png = whole()["PNG"]
    for path in ("/segment", "/segment/batch", "/segment/volume"):
        yield Spoilt("JSON in place of a form", path, {"json": {"file": "http://example.org/x"}})
        yield Spoilt("no body", path, {})
        yield Spoilt("another field", path, _file(png, "picture"))
        if path != "/segment/batch":  # which says it of the one file
            yield Spoilt("text in place of the file", path, {"data": {"file": "x"}})
        headers = {"Content-Type": "multipart/form-data"}
        yield Spoilt("no boundary", path, {"content": b"--x\r\n", "headers": headers})
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        yield Spoilt("broken parts", path, {"content": b"--x\r\nA\r\n\r\n", "headers": headers})
    too_many = [("files", (f"{n}", b"")) for n in range(65)]
    yield Spoilt("65 files", "/segment/batch", {"files": too_many})
    yield Spoilt("more than 10 MiB", "/segment", _file(b"\xff\xd8\xff" + bytes(MAX_BYTES)), 413)
    for path in ("/uploads/../../etc/passwd", "/segmented/%2e%2e%2fmodel.json", "/none"):
        yield Spoilt("an address that is none", path, {})
