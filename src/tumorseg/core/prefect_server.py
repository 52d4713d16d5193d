"""Local servers: one Prefect server for a whole run, and the two user interfaces."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from tumorseg.core import processes
from tumorseg.core.alerts import alert
from tumorseg.core.environment import PREFECT_URL_FILE, STATE, answers, noted_prefect
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_text

PATIENCE_SECONDS = 120
FOLDER = PREFECT_URL_FILE.parent
_SERVER = FOLDER / "process"  # the tag of the server's process


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
        with suppress(psutil.NoSuchProcess):
            processes.end_tree(psutil.Process(process.pid))
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
    change = FileLock(FOLDER / "start.lock", timeout=PATIENCE_SECONDS)
    with (FOLDER / "users").open("a") as users:  # a shared lock of all that use the server
        with change:
            fcntl.flock(users, fcntl.LOCK_SH)
            url = _running() or _start()
        os.environ["PREFECT_API_URL"] = url
        mark_crashed(url)
        try:
            yield url
        finally:
            del os.environ["PREFECT_API_URL"]
            with change, suppress(BlockingIOError):  # another process uses it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end()


def _running() -> str | None:
    """The address of the server that an earlier command started, once it answers."""
    url = noted_prefect()
    if url and not (_SERVER.exists() and processes.find(_SERVER.read_text())):
        return None
    return url if url and _answers_in_time(url) else None


def _answers_in_time(url: str, process: subprocess.Popen[bytes] | None = None) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not answers(url):
        if time.monotonic() > deadline or (process and process.poll() is not None):
            return False
        time.sleep(0.3)
    return True


def _start() -> str:
    _end()
    port = free_port(4200)
    url = f"http://127.0.0.1:{port}/api"
    log = FOLDER / "server.log"
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = started(command, log)
    write_text(_SERVER, processes.tag(psutil.Process(process.pid)))
    write_text(PREFECT_URL_FILE, url)
    try:
        if not _answers_in_time(url, process):
            raise InputError(f"the Prefect server did not start; its last words are in {log}")
    except BaseException:
        _end()
        raise
    return url


def _end() -> None:
    PREFECT_URL_FILE.unlink(missing_ok=True)
    if _SERVER.exists() and (server := processes.find(_SERVER.read_text())):
        processes.end_tree(server)
    _SERVER.unlink(missing_ok=True)


def mark_crashed(prefect_url: str) -> None:
    """Ends the flow runs that a killed process of this machine left running.

    Prefect would call them running for ever, and a deployment of one run at a time would start no
    other. A killed retraining is alerted here, since its own hooks could not run.

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
            if any(map(processes.is_dead, run["tags"])):
                post(f"/flow_runs/{run['id']}/set_state", {"state": crashed, "force": True})
                print(f"flow run {run['name']}: marked as crashed, its process was killed")
                if "retrain" in run["tags"]:
                    page = f"{prefect_url.removesuffix('/api')}/runs/flow-run/{run['id']}"
                    alert("retrain", "retrain", "its process was killed", page)
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
