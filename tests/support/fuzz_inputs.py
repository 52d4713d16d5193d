"""Damaged files of every kind that the service reads, the same for the same seed.

`inputs` yields them without end; `check` is what each must pass. Tests run a few hundred,
`benchmarks/fuzz.py` as many as one likes, over HTTP too.
"""

import gzip
import io
import time
import zipfile
from collections.abc import Callable, Iterator

import nibabel
import numpy as np
from PIL import Image
from pydicom.uid import JPEGLSLossless, RLELossless

from tests.support.made_volumes import (
    dicom_bytes,
    enhanced,
    nifti,
    nifti_values,
    series,
    series_zip,
    zipped,
)
from tests.support.serving_model import disc, encode
from tests.support.spoilt_volumes import as_syntax
from tumorseg.imaging import seg
from tumorseg.imaging.decode import decode
from tumorseg.imaging.study import Rejected
from tumorseg.inference.predictor import ModelInfo

SECONDS = 20.0  # that one small file may take; a hang takes longer
Random = np.random.Generator


def whole() -> dict[str, bytes]:
    """One good file of every kind."""
    grey, colour = Image.fromarray(disc()), Image.fromarray(np.dstack([disc()] * 3))
    (plain,) = series(count=1)
    compressed = {}
    for syntax in (RLELossless, JPEGLSLossless):
        (dataset,) = series(count=1)
        dataset.compress(syntax)
        compressed[syntax.name] = dicom_bytes(dataset)
    picture = Image.fromarray(series(count=1)[0].pixel_array)
    volume = nifti(nifti_values(), "LPS").to_bytes()
    return {
        "PNG": encode(grey),
        "PNG of 16 bits": encode(Image.fromarray(disc().astype(np.uint16) * 9)),
        "PNG with a palette": encode(colour.convert("P")),
        "JPEG": encode(grey, "JPEG"),
        "progressive JPEG": encode(colour, "JPEG", progressive=True),
        "DICOM": dicom_bytes(plain),
        "DICOM with a window": dicom_bytes(series(count=1, WindowCenter=9, WindowWidth=99)[0]),
        "multi-frame DICOM": dicom_bytes(enhanced()),
        "JPEG 2000": as_syntax("1.2.840.10008.1.2.4.90", encode(picture, "JPEG2000", no_jp2=True)),
        **compressed,
        "zip": series_zip(series(), (3, 1, 0, 4, 2)),
        "NIfTI": volume,
        "NIfTI-2": nifti(nifti_values(), "PIR", kind=nibabel.Nifti2Image).to_bytes(),
        "packed NIfTI": gzip.compress(volume),
    }


def _somewhere(data: bytearray, random: Random) -> int:
    """A position; often in the first bytes, where headers are."""
    end = min(len(data), 1024) if random.random() < 0.6 else len(data)
    return int(random.integers(max(end, 1)))


def _flip(data: bytearray, random: Random) -> None:
    for _ in range(random.integers(1, 12)):
        data[_somewhere(data, random)] = random.integers(256)


def _cut(data: bytearray, random: Random) -> None:
    del data[_somewhere(data, random) :]


def _drop(data: bytearray, random: Random) -> None:
    start = _somewhere(data, random)
    del data[start : start + int(random.integers(1, 400))]


def _fill(data: bytearray, random: Random) -> None:
    start, length = _somewhere(data, random), int(random.integers(1, 64))
    data[start : start + length] = bytes([random.choice([0, 1, 127, 128, 255])]) * length


def _insert(data: bytearray, random: Random) -> None:
    start = _somewhere(data, random)
    data[start:start] = random.bytes(int(random.integers(1, 200)))


def _copy(data: bytearray, random: Random) -> None:
    start, target = _somewhere(data, random), _somewhere(data, random)
    piece = data[start : start + int(random.integers(1, 600))]
    data[target : target + len(piece)] = piece


def _number(data: bytearray, random: Random) -> None:
    """A length or a size that is far off."""
    start = _somewhere(data, random)
    worst = [0, 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**32 - 2**20]
    data[start : start + 4] = int(random.choice(worst)).to_bytes(
        4, random.choice(["little", "big"])
    )


_WAYS: list[Callable[[bytearray, Random], None]] = [
    _flip, _cut, _drop, _fill, _insert, _copy, _number,
]  # fmt: skip


def damaged(data: bytes, random: Random) -> bytes:
    """A file with one to three faults; packed ones are also spoilt inside and packed again."""
    if random.random() < 0.7:
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                files = [archive.read(name) for name in archive.namelist()]
            chosen = int(random.integers(len(files)))
            files[chosen] = damaged(files[chosen], random)
            return zipped(files)
        if data.startswith(b"\x1f\x8b"):
            return gzip.compress(damaged(gzip.decompress(data), random), 1)
    spoilt = bytearray(data)
    for _ in range(random.integers(1, 4)):
        if spoilt:
            _WAYS[random.integers(len(_WAYS))](spoilt, random)
    return bytes(spoilt)


def inputs(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yields kind and bytes of one damaged file after the other, without end."""
    good = list(whole().items())
    random = np.random.default_rng(seed)
    while True:
        for name, data in good:
            yield name, damaged(data, random)


def check(data: bytes, info: ModelInfo) -> str:
    """Decodes a file and, where that works, writes the answer for a volume.

    Returns:
        What came of it: "used", or the status of the refusal.

    Raises:
        AssertionError: Something other than a refusal came of it, or it took too long.
    """
    start = time.monotonic()
    try:
        study = decode(data)
        masks = [grey > 127 for grey in study.slices]
        if study.kind == "dicom":
            if study.source.affine is not None:
                seg.nifti_file(study, masks)
            seg.check(study, "seg")
            seg.seg_file(study, masks, info)
        elif study.kind == "nifti":
            seg.nifti_file(study, masks)
        outcome = "used"
    except Rejected as error:
        assert error.status in (400, 413, 415) and error.sentence.endswith(".")
        outcome = str(error.status)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of a refusal: {error}") from error
    taken = time.monotonic() - start
    assert taken < SECONDS, f"took {taken:.1f} s"
    return outcome
