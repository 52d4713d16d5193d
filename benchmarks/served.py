"""A running service to measure, what it is sent, and the masks that it must answer."""

import base64
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from tumorseg.core.environment import SERVING, SILENT
from tumorseg.core.errors import InputError
from tumorseg.core.prefect_server import free_port
from tumorseg.imaging.preprocess import Mask
from tumorseg.imaging.render import mask_png
from tumorseg.inference.predictor import Predictor
from tumorseg.monitoring.statistics import VARIABLE

START_SECONDS = 120
SERVICE = "tumorseg.serving.service:TumorSegmentation"


@dataclass(frozen=True)
class Server:
    """A service in a process of its own.

    Attributes:
        url: Where it answers.
        process: Its first process.
        log: What it prints.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path = field(repr=False)

    def kept(self) -> float:
        """What it keeps of the page's pictures until they expire, in MiB."""
        text = httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).text
        found = re.search(r"^tumorseg_page_bytes(?:{.*})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) / 1024**2 if found else 0.0

    def memory(self) -> float:
        """Resident memory of all its processes, in MiB."""
        first = psutil.Process(self.process.pid)
        total = 0
        for one in (first, *first.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total / 2**20


@contextmanager
def serve(model: Path, tag: str | None = None) -> Iterator[Server]:
    """Runs the service until the context ends.

    Args:
        model: The model folder.
        tag: The bento to serve; this checkout's own code over `model` if None.

    Raises:
        InputError: It does not start.
    """
    with tempfile.TemporaryDirectory(prefix="tumorseg-bench-") as folder:
        log = Path(folder, "server.log")
        port = free_port(0)
        command = [sys.executable, "-m", "bentoml", "serve", tag or SERVICE]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        source = str(Path(__file__).resolve().parents[1] / "src")
        own = {} if tag else {"TUMORSEG_MODEL": str(model.resolve()), "PYTHONPATH": source}
        own |= SERVING | {VARIABLE: str(Path(folder, "statistics.db"))}  # as `tumorseg serve`
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=os.environ | SILENT | own, cwd=folder, stdout=output, stderr=output
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait(server, "/readyz")
            yield server
        finally:
            stop(process)


def _wait(server: Server, path: str) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(server.url + path, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # it is not listening yet
        if server.process.poll() is not None or time.monotonic() > end:
            raise InputError(f"the service did not start: {server.log.read_text()[-800:]}")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes], seconds: float = 30) -> int:
    """Sends SIGTERM, waits, and returns the exit status; kills what does not end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        for one in psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.kill()
        return process.wait()


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
        if encoded == self.encoded:
            return True
        return self.is_answered_by_file(base64.b64decode(encoded))

    def is_answered_by_file(self, png: bytes) -> bool:
        """The same for the PNG file itself."""
        return alike(np.asarray(Image.open(BytesIO(png))) > 127, self.mask)


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
    """Draws a picture and finds its mask beforehand."""
    file = BytesIO()
    Image.fromarray(drawn(number, side)).save(file, kind)
    pixels = np.asarray(Image.open(BytesIO(file.getvalue())).convert("L"))
    mask = predictor.segment(pixels).mask
    return Picture(file.getvalue(), pixels, mask, base64.b64encode(mask_png(mask)).decode())


def quantile(values: list[float], share: float) -> float:
    """A quantile; NaN of nothing."""
    return float(np.quantile(values, share)) if values else float("nan")
