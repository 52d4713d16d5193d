"""The web app behind a real server, and the files that its tests send."""

import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import nibabel
import numpy as np
from PIL import Image
from pydicom.uid import generate_uid
from werkzeug.serving import make_server

from tests.support.samples import mr_slice
from tests.support.serving_model import disc, encode
from tumorseg.inference.predictor import Predictor

SPACING = (0.9, 1.1, 3.0)  # of the NIfTI volume, in mm


@contextmanager
def serving(app: Callable[..., Any]) -> Iterator[str]:
    """Serves a WSGI app with threads on a free port; gives its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def blob(radius: int, shape: tuple[int, int] = (72, 60)) -> np.ndarray:
    """A bright disc on dark noise, uint8, shape (H, W)."""
    rows, columns = np.indices(shape)
    inside = (rows - 30) ** 2 + (columns - 25) ** 2 < radius**2
    return np.where(inside, 220, np.random.default_rng(radius).integers(0, 30, shape)).astype(
        np.uint8
    )


def dicom_series(count: int = 3, names: str = "DOE^JANE") -> list[Any]:
    """MR slices of 0.5 × 0.7 mm, 4 mm apart."""
    study, series = generate_uid(), generate_uid()
    return [
        mr_slice("ID7", study, series, n, blob(8 + 3 * n) * np.uint16(8), PatientName=names)
        for n in range(count)
    ]


def dicom_bytes(dataset: Any) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def zipped(files: list[bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, data in enumerate(files):
            archive.writestr(str(number), data)
    return file.getvalue()


def nifti_volume(count: int = 7) -> Any:
    """An axial volume with a disc of another size in each slice."""
    values = np.stack([blob(6 + 2 * n).T for n in range(count)], axis=2)
    image = nibabel.Nifti1Image(values.astype(np.int16) * 5, np.diag([*SPACING, 1.0]))
    return nibabel.Nifti1Image.from_bytes(image.to_bytes())  # its affine is what a file can hold


class _Browser:
    """What the superseded app's page does: it uploads, and then shows two pictures."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=60)

    def round(self, picture: bytes) -> tuple[bytes, bytes, bytes]:
        """Uploads; returns the pictures shown as the original, the result and the mask."""
        reply = self.client.post("/upload", files={"file": ("scan.png", picture)}).json()
        paths = ("uploads/uploaded_image.jpg", *(f"segmented/{reply[k]}" for k in _SHOWN))
        original, result, mask = (self.client.get(f"/{path}").content for path in paths)
        return original, result, mask


_SHOWN = ("segmented_img", "mask_img")


def swapped(url: str, predictor: Predictor, rounds: int, sessions: int = 2) -> list[str]:
    """Uploads different scans from several sessions at once, again and again.

    Args:
        url: Of a service with the superseded app's routes.
        predictor: The model that it serves.
        rounds: How often each session uploads.
        sessions: How many there are.

    Returns:
        A line for each picture that was not the session's own, or for what went wrong.
    """
    together = threading.Barrier(sessions)
    wrong: list[str] = []

    def one(number: int) -> None:
        browser = _Browser(url)
        for turn in range(rounds):
            grey = disc(100 + 20 * number, 90 + turn % 40)
            expected = predictor.segment(grey).mask * np.uint8(255)
            together.wait(60)
            try:
                original, result, mask = map(pixels, browser.round(encode(Image.fromarray(grey))))
            except Exception as error:
                wrong.append(f"session {number}, round {turn}: {error!r}")
                continue
            own = np.array_equal(original, grey) and np.array_equal(mask, expected)
            # Where nothing was painted, the result is the slice itself.
            if not (own and np.array_equal(result[expected == 0][:, 0], grey[expected == 0])):
                wrong.append(f"session {number}, round {turn}: another one's picture")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
