"""What benchmarks share: a temporary repository, a service to ask, and Markdown tables."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

# For `deploy`, `pipelines` and `tests.support`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deploy import services
from tumorseg.core import environment
from tumorseg.core.prefect_server import free_port, prefect_server
from tumorseg.data.phantom import make_phantom
from tumorseg.monitoring.statistics import VARIABLE

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHONPATH = f"{REPOSITORY / 'src'}:{REPOSITORY}"
SERVICE = "tumorseg.serving.service:TumorSegmentation"


def row(*cells: object) -> None:
    """Prints a line of a Markdown table at once."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def head(*titles: str, numbers: int = 0) -> None:
    """Prints the head of a Markdown table whose last columns are numbers, to the right."""
    row(*titles)
    print("|" + "---|" * (len(titles) - numbers) + "--:|" * numbers, flush=True)


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


@contextmanager
def workplace() -> Iterator[Path]:
    """Changes into a temporary folder with MLflow and BentoML stores and a Prefect server."""
    with tempfile.TemporaryDirectory(prefix="tumorseg-bench-") as temporary:
        root = Path(temporary, "repository")
        (root / environment.STATE).mkdir(parents=True)
        os.chdir(root)
        os.environ |= environment.defaults(root)
        os.environ |= {"PATH": environment.search_path(), "PYTHONPATH": PYTHONPATH}
        os.environ.pop("PREFECT_API_URL", None)
        with prefect_server():
            yield root


def run(command: list[str], seconds: float | None = None) -> tuple[int | None, str]:
    """Runs a command; after `seconds` kills it and all that it started.

    Returns:
        Its exit status, None if it was killed, and what it printed.
    """
    with tempfile.TemporaryFile("w+") as output:
        started = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = started.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            status = None
        output.seek(0)
        return status, output.read()


@dataclass
class Server(services.Server):
    """A server process that is asked over HTTP at `url`."""

    url: str = ""

    def page_memory(self) -> float:
        """What the page's pictures take until they expire, in MiB."""
        text = httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).text
        found = re.search(r"^tumorseg_page_bytes(?:{.*})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) / 2**20 if found else 0.0

    def memory(self) -> float:
        """Resident memory of all its processes, in MiB."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(each.memory_info().rss for each in family) / 2**20


@contextmanager
def running(
    command: list[str], port: int, probe: str, folder: Path, own: dict[str, str]
) -> Iterator[Server]:
    """Runs a server until the context ends.

    Args:
        command: What starts it.
        port: Where it listens on the loopback interface.
        probe: The path that is answered with status 200 once it is ready.
        folder: Its working directory, with its log.
        own: Variables besides this process's.

    Raises:
        InputError: It does not start.
    """
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.get(url + probe, timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:  # it is not listening yet
            return False

    variables = os.environ | environment.SILENT | own
    server = Server(url, command, folder / "server.log", ready, variables, url=url)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def serve(model: Path, tag: str | None = None) -> Iterator[Server]:
    """Runs the service until the context ends.

    Args:
        model: The model folder.
        tag: The bento to serve; this checkout's own code over `model` if None.
    """
    with tempfile.TemporaryDirectory(prefix="tumorseg-bench-") as folder:
        port = free_port(0)
        command = [sys.executable, "-m", "bentoml", "serve", tag or SERVICE]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        own = {} if tag else {"TUMORSEG_MODEL": str(model.resolve()), "PYTHONPATH": PYTHONPATH}
        # As `tumorseg serve` sets them.
        own |= environment.SERVING | {VARIABLE: str(Path(folder, "statistics.db"))}
        with running(command, port, "/readyz", Path(folder), own) as server:
            yield server
