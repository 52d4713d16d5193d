"""Local servers: one Prefect server for a whole run, and the two user interfaces."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tumorseg.core import processes
from tumorseg.core.environment import PREFECT_URL_FILE, STATE, answers, noted_prefect
from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path, locked

PATIENCE_SECONDS = 120
FOLDER = PREFECT_URL_FILE.parent
_SERVER = FOLDER / "process"  # which process the server is


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


def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `python -m command…`, its output in a log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches us first; we stop it in order
        )


@contextmanager
def background(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `python -m command…` until the context ends, its output in a log file."""
    process = started(command, log)
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
    """Yields the address of a Prefect API: PREFECT_API_URL's, or that of this checkout's server.

    The latter is started by the first process that needs it, and ended by the last one.

    Raises:
        InputError: PREFECT_API_URL is set, but nothing answers there; or the server does not start.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url and url != noted_prefect():
        if not answers(url):
            raise InputError(
                f"PREFECT_API_URL is {url}, but no Prefect server answers there: start it, or "
                "unset the variable to have one started here"
            )
        mark_crashed(url)
        yield url
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    change = partial(locked, FOLDER / "start.lock", "start or end of Prefect", PATIENCE_SECONDS)
    with (FOLDER / "users").open("a") as users:  # all that use the server share its lock
        with change():
            fcntl.flock(users, fcntl.LOCK_SH)
            url = _running_prefect() or _start_prefect()
        os.environ["PREFECT_API_URL"] = url
        mark_crashed(url)
        try:
            yield url
        finally:
            del os.environ["PREFECT_API_URL"]
            with change():
                fcntl.flock(users, fcntl.LOCK_UN)
                with suppress(BlockingIOError):  # somebody else uses it
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _end_prefect()


def _server() -> processes.Process | None:
    """The process that `_start_prefect` noted."""
    try:
        return processes.Process.tagged(_SERVER.read_text())
    except FileNotFoundError:  # none was started, or `make clean` took the note
        return None


def _running_prefect() -> str | None:
    """The address of the server that an earlier command started; one that is slow is waited for."""
    url, server = noted_prefect(), _server()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while url and not answers(url):
        if not (server and server.lives()) or time.monotonic() > deadline:
            _end_prefect()
            return None
        time.sleep(0.3)
    return url


def _start_prefect() -> str:
    port = free_port(4200)
    url = f"http://127.0.0.1:{port}/api"
    log = FOLDER / "server.log"
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = started(command, log)
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise InputError(f"the Prefect server did not start; its last words are in {log}")
            time.sleep(0.3)
        with atomic_path(_SERVER) as temporary:
            temporary.write_text(processes.process(process.pid).tag)
        PREFECT_URL_FILE.write_text(url)
    except BaseException:  # nobody else knows of it
        process.kill()
        process.wait()
        raise
    return url


def _end_prefect() -> None:
    PREFECT_URL_FILE.unlink(missing_ok=True)
    server = _server()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 20
        while server and server.lives() and time.monotonic() < deadline:
            with suppress(ProcessLookupError):
                os.kill(server.pid, sign)
            time.sleep(0.5)
    _SERVER.unlink(missing_ok=True)


def mark_crashed(prefect_url: str) -> None:
    """Ends the flow runs that a process of this machine left running when it was killed.

    Args:
        prefect_url: The Prefect API, such as `http://127.0.0.1:4200/api`.
    """

    def post(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            prefect_url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    crashed = {"type": "CRASHED", "name": "Crashed", "message": "its process was killed"}
    try:
        running = post(
            "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        )
        for run in running:
            its = filter(None, map(processes.Process.tagged, run["tags"]))
            if any(process.lives() is False for process in its):
                post(f"/flow_runs/{run['id']}/set_state", {"state": crashed, "force": True})
                print(f"flow run {run['name']}: marked as crashed, its process was killed")
    except (OSError, ValueError) as error:  # tidying up is no reason not to run
        print(f"flow runs of killed processes could not be marked as crashed: {error}")


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
