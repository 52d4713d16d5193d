"""Local servers: one Prefect server for a whole run, and the two user interfaces."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tumorseg.environment import PREFECT_URL_FILE, STATE, answers
from tumorseg.errors import InputError

PATIENCE_SECONDS = 120


def free_port(preferred: int) -> int:
    """`preferred` if nothing listens there on the loopback interface, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise InputError("no port is free on the loopback interface")


@contextmanager
def background(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `python -m command…` until the context ends, its output in a log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches us first; we stop it in order
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def prefect_server() -> Iterator[str]:
    """Yields the address of a Prefect API: the one that answers, or one started for the context.

    Raises:
        InputError: PREFECT_API_URL is set, but nothing answers there; or the server does not start.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url:
        if not answers(url):
            raise InputError(
                f"PREFECT_API_URL is {url}, but no Prefect server answers there: start it, or "
                "unset the variable to have one started here"
            )
        yield url
        return
    port = free_port(4200)
    url = f"http://127.0.0.1:{port}/api"
    log = STATE / "prefect" / "server.log"
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with background(command, log) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise InputError(f"the Prefect server did not start; its last words are in {log}")
            time.sleep(0.3)
        os.environ["PREFECT_API_URL"] = url
        PREFECT_URL_FILE.write_text(url)
        try:
            yield url
        finally:
            PREFECT_URL_FILE.unlink(missing_ok=True)
            del os.environ["PREFECT_API_URL"]


@contextmanager
def mlflow_ui() -> Iterator[str]:
    """Yields the address of the MLflow UI, started on port 5000 unless MLflow is a server."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if uri.startswith("http"):
        yield uri
        return
    port = free_port(5000)
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri]
    command += ["--default-artifact-root", (STATE / "mlflow-artifacts").resolve().as_uri()]
    with background(command, STATE / "mlflow-ui.log"):
        yield f"http://127.0.0.1:{port}"
