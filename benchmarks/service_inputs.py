"""What the service is sent: pictures and volumes with their masks, and what it must refuse."""

import base64
import gzip
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.support.fuzz_inputs import inputs, whole
from tests.support.made_volumes import dicom_bytes, series_zip
from tests.support.samples import mr_slice
from tests.support.spoiling import spoilt
from tests.support.spoilt_pictures import PICTURES
from tumorseg.imaging.decode import decode
from tumorseg.imaging.preprocess import Mask
from tumorseg.imaging.render import mask_png
from tumorseg.imaging.seg import nifti_file, seg_file
from tumorseg.imaging.study import MAX_BYTES, Rejected
from tumorseg.inference.predictor import Predictor

SLICES, SIDE = 4, 160  # of a volume
Placed = tuple[Any, NDArray[Any]]  # whose grid a mask lies on, and its voxels


@dataclass(frozen=True)
class Picture:
    """One picture and what the service must find in it.

    Attributes:
        data: The file.
        pixels: Its grey values, uint8, shape (H, W).
        mask: What the predictor found, bool, shape (H, W).
        encoded: The same as the service writes it, a PNG file in base64.
    """

    data: bytes = field(repr=False)
    pixels: NDArray[np.uint8] = field(repr=False)
    mask: Mask = field(repr=False)
    encoded: str = field(repr=False)

    def is_answered_by(self, encoded: str) -> bool:
        """Whether a mask is this picture's, but for pixels at the threshold's very edge.

        A network computes a slice in the last digits differently in another batch.
        """
        return encoded == self.encoded or self.is_answered_by_file(base64.b64decode(encoded))

    def is_answered_by_file(self, png: bytes) -> bool:
        """The same for the PNG file itself."""
        return alike(np.asarray(Image.open(BytesIO(png))) > 127, self.mask)


@dataclass(frozen=True)
class Volume:
    """A volume and the file that the service must answer.

    Attributes:
        data: The file that is sent.
        answer: Grid and voxels of what must come back.
        read: Takes both out of an answer.
    """

    data: bytes = field(repr=False)
    answer: Placed = field(repr=False)
    read: Callable[[bytes], Placed] = field(repr=False)

    def is_answered_by(self, content: bytes) -> bool:
        """Whether a file lies on this volume's grid and holds its masks."""
        grid, voxels = self.read(content)
        return grid == self.answer[0] and alike(voxels > 0, self.answer[1] > 0)


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


def alike(found: Mask, expected: Mask) -> bool:
    """Whether two masks are the same, but for pixels at the threshold's very edge."""
    if found.shape != expected.shape:
        return False
    return int((found != expected).sum()) <= max(2, found.size // 10_000)


def drawn(number: int, side: int | None = None) -> NDArray[np.uint8]:
    """A picture unlike any other: discs on noise, uint8, sides of 200 to 700 pixels."""
    rng = np.random.default_rng(number)
    height, width = (side, side) if side else rng.integers(200, 700, 2)
    rows, columns = np.mgrid[:height, :width]
    plane = rng.normal(40, 12, (height, width))
    for _ in range(int(rng.integers(1, 4))):
        centre = rng.uniform(0.2, 0.8, 2) * (height, width)
        radius = rng.uniform(0.06, 0.2) * min(height, width)
        plane[np.hypot(rows - centre[0], columns - centre[1]) < radius] += rng.uniform(90, 160)
    return np.clip(plane, 0, 255).astype(np.uint8)


def picture(
    predictor: Predictor, number: int, kind: str = "PNG", side: int | None = None
) -> Picture:
    """A picture as a file of a kind (PNG, JPEG or DICOM), and its mask."""
    if kind == "DICOM":
        data = dicom_bytes(_series(number, 1)[0])
        pixels = decode(data).slices[0]
    else:
        file = BytesIO()
        Image.fromarray(drawn(number, side)).save(file, kind)
        data = file.getvalue()
        pixels = np.asarray(Image.open(BytesIO(data)).convert("L"))
    mask = predictor.segment(pixels).mask
    return Picture(data, pixels, mask, base64.b64encode(mask_png(mask)).decode())


def dicom_volume(predictor: Predictor, number: int) -> Volume:
    """A zip of a small series, and its segmentation."""
    data = series_zip(_series(number, SLICES))
    study = decode(data)
    masks = [found.mask for found in predictor.segment_many(study.slices)]
    return Volume(data, _read_seg(seg_file(study, masks, predictor.info)), _read_seg)


def nifti_volume(predictor: Predictor, number: int) -> Volume:
    """A small NIfTI volume, and its masks."""
    planes = [drawn(SLICES * number + n, SIDE).T for n in range(SLICES)]
    place = np.diag([0.9, 1.1, 3.0, 1.0])
    place[:3, 3] = number  # so that no two lie on the same grid
    data = nibabel.Nifti1Image(np.stack(planes, axis=2).astype(np.int16), place).to_bytes()
    study = decode(data)
    masks = [found.mask for found in predictor.segment_many(study.slices)]
    return Volume(data, _read_nifti(nifti_file(study, masks)), _read_nifti)


def _series(number: int, count: int) -> list[Dataset]:
    study, series = generate_uid(), generate_uid()
    planes = (drawn(SLICES * number + n, SIDE) * np.uint16(16) for n in range(count))
    return [mr_slice("made", study, series, n, plane) for n, plane in enumerate(planes)]


def _read_seg(content: bytes) -> Placed:
    seg = pydicom.dcmread(BytesIO(content))
    return seg.ReferencedSeriesSequence[0].SeriesInstanceUID, seg.pixel_array


def _read_nifti(content: bytes) -> Placed:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    return image.affine.tolist(), np.asarray(image.dataobj)


def corpus(fuzzed: int = 150) -> list[Spoilt]:
    """Every request that must be refused; those about files with the decoder's own status."""
    found = []
    stream = inputs(seed=5)
    damaged = ((f"fuzzed {name}", data) for name, data in (next(stream) for _ in range(fuzzed)))
    for name, data in [*_files(), *damaged]:
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


def _files() -> Iterator[tuple[str, bytes]]:
    """Damaged and hostile files: those that importers meet, and more of every kind."""
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
    yield "zip bomb", _zip({"a.dcm": bytes(600 * 2**20)})
    yield "zip of 5000 paths that lead out", _zip({f"../../{n}": b"x" for n in range(5000)})
    pixels = BytesIO()
    Image.fromarray(np.zeros((4097, 20), np.uint8)).save(pixels, "PNG")
    yield "PNG of 4097 rows", pixels.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


def _nifti(shape: tuple[int, int, int]) -> bytes:
    """A NIfTI header that claims a shape, and 400 bytes for voxels."""
    header = nibabel.Nifti1Header()
    header["dim"][:4] = (3, *shape)
    header["datatype"], header["bitpix"], header["vox_offset"] = 4, 16, 352
    header["magic"] = b"n+1"
    return bytes(header.binaryblock) + bytes(4 + 400)


def _file(data: bytes, name: str = "file") -> dict[str, Any]:
    return {"files": {name: ("x", data)}}


def _forms() -> Iterator[Spoilt]:
    png = whole()["PNG"]
    for path in ("/segment", "/segment/batch", "/segment/volume"):
        yield Spoilt("JSON in place of a form", path, {"json": {"file": "http://example.org/x"}})
        yield Spoilt("no body", path, {})
        yield Spoilt("another field", path, _file(png, "picture"))
        if path != "/segment/batch":  # which answers that for each file
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
