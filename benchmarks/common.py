"""What benchmarks share: a small repository to run, a service to ask, and Markdown tables."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import yaml

from tumorseg.core.environment import SERVING, SILENT
from tumorseg.core.errors import InputError
from tumorseg.core.prefect_server import free_port
from tumorseg.data.phantom import make_phantom
from tumorseg.monitoring.statistics import VARIABLE

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHONPATH = f"{REPOSITORY / 'src'}:{REPOSITORY}"
START_SECONDS = 120
SERVICE = "tumorseg.serving.service:TumorSegmentation"


def row(*cells: object) -> None:
    """Prints a line of a Markdown table at once."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def head(*titles: str, numbers: int = 0) -> None:
    """Prints the head of a Markdown table whose last columns are numbers, to the right."""
    row(*titles)
    print("|" + "---|" * (len(titles) - numbers) + "--:|" * numbers, flush=True)


def quantile(values: list[float], share: float) -> float:
    """A quantile; NaN of nothing."""
    return float(np.quantile(values, share)) if values else float("nan")


def small_repository(root: Path, size: int, counts: dict[str, int], **common: object) -> None:
    """Copies the repository's sources as git knows them, with small data and small networks.

    Args:
        root: The new repository's folder; exists.
        size: Side of the network's grid, in pixels.
        counts: Split → slices of the phantom.
        common: Parameters of section train.common.
    """
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in found.stdout.splitlines():
        if not name.startswith(("remote/", "data.dvc", "tests/", "docs/", ".venv")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, root / name)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["augment"]["image_size"] = size
    params["train"]["common"] |= common
    for name in ("unet", "attention_unet"):
        params["train"][name]["channels"] = [4, 8, 16]
    params["evaluate"]["bootstrap_samples"] = 50
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    make_phantom(root / "data", counts=counts, size=96)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    add = [sys.executable, "-m", "dvc", "--quiet", "add", "data"]
    subprocess.run(add, cwd=root, check=True)


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

    def page_memory(self) -> float:
        """What the page's pictures take until they expire, in MiB."""
        text = httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).text
        found = re.search(r"^tumorseg_page_bytes(?:{.*})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) / 1024**2 if found else 0.0

    def memory(self) -> float:
        """Resident memory of all its processes, in MiB."""
        total = 0
        for one in family(self.process.pid):
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:  # it ended just now
                continue
        return total / 2**20


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


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
        port = free_port(0)
        command = [sys.executable, "-m", "bentoml", "serve", tag or SERVICE]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        own = {} if tag else {"TUMORSEG_MODEL": str(model.resolve()), "PYTHONPATH": PYTHONPATH}
        own |= SERVING | {VARIABLE: str(Path(folder, "statistics.db"))}  # as `tumorseg serve`
        with running(command, f"http://127.0.0.1:{port}", "/readyz", Path(folder), own) as server:
            yield server


@contextmanager
def running(
    command: list[str], url: str, probe: str, folder: Path, own: dict[str, str]
) -> Iterator[Server]:
    """Runs a server in a folder until the context ends; `own` are variables besides this process's.

    Raises:
        InputError: It does not answer `probe` with status 200 in time.
    """
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | SILENT | own, cwd=folder, stdout=output, stderr=output
        )
    server, end = Server(url, process, log), time.monotonic() + START_SECONDS
    try:
        while not _answers(url + probe):
            if process.poll() is not None or time.monotonic() > end:
                raise InputError(f"the server at {url} did not start: {log.read_text()[-800:]}")
            time.sleep(0.1)
        yield server
    finally:
        stop(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:  # it is not listening yet
        return False


def stop(process: subprocess.Popen[bytes], seconds: float = 30) -> int:
    """Sends SIGTERM, waits, and returns the exit status; kills what does not end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        return process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGKILL to a process and all that it started."""
    for one in family(process.pid):
        one.kill()
