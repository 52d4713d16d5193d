"""Local servers: one Prefect server for all commands of a checkout, and the MLflow page."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
from filelock import FileLock

from tumorseg.core.alerts import alert
from tumorseg.core.environment import PREFECT_URL_FILE, STATE, answers, noted_prefect
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_text
from tumorseg.core.processes import background, end_marked, is_dead, marked, start

PATIENCE_SECONDS = 120
FOLDER = PREFECT_URL_FILE.parent
LOG = FOLDER / "server.log"


def free_port(preferred: int) -> int:
    """`preferred` if nothing listens there on the loopback interface, else any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prefect_server() -> Iterator[str]:
    """Yields the address of a Prefect API: PREFECT_API_URL's, or that of this checkout's server.

    The latter is started by the first process that needs it, and ended by the last one.

    Raises:
        InputError: PREFECT_API_URL is set, but nothing answers there; or the server does not start.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url and url != noted_prefect():
        if not answers(f"{url}/health"):
            raise InputError(
                f"PREFECT_API_URL is {url}, but no Prefect server answers there: start it, or "
                "unset the variable to have one started here"
            )
        mark_crashed(url)
        yield url
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    change = FileLock(FOLDER / "start.lock")
    with (FOLDER / "users").open("a") as users:  # each user of the server holds a shared lock
        try:
            with change:
                fcntl.flock(users, fcntl.LOCK_SH)
                url = _running_server()
            os.environ["PREFECT_API_URL"] = url
            mark_crashed(url)
            yield url
        finally:
            os.environ.pop("PREFECT_API_URL", None)
            with change, suppress(BlockingIOError):  # another process uses it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                PREFECT_URL_FILE.unlink(missing_ok=True)
                end_marked(str(LOG.resolve()))


def _running_server() -> str:
    """The address of this checkout's server, which is started unless one runs and answers."""
    url = noted_prefect()
    # Another checkout's server may have the port of one that was killed.
    if url and marked(str(LOG.resolve())) and _answers_in_time(url):
        return url
    end_marked(str(LOG.resolve()))
    port = free_port(4200)
    url = f"http://127.0.0.1:{port}/api"
    start(["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], LOG)
    write_text(PREFECT_URL_FILE, url)
    if not _answers_in_time(url):
        raise InputError(f"the Prefect server did not start; see the end of {LOG}")
    return url


def _answers_in_time(url: str) -> bool:
    """Waits for the server as long as its process runs, at most `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not answers(f"{url}/health"):
        if time.monotonic() > deadline or not marked(str(LOG.resolve())):
            return False
        time.sleep(0.3)
    return True


def mark_crashed(prefect_url: str) -> None:
    """Ends the flow runs that a killed process of this machine left in state Running.

    They would keep a deployment of one run at a time from starting another. A killed retraining is
    alerted here, since its own hooks could not run.

    Args:
        prefect_url: The Prefect API, such as `http://127.0.0.1:4200/api`.
    """
    running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    crashed = {"type": "CRASHED", "name": "Crashed", "message": "its process was killed"}
    try:
        with httpx.Client(base_url=prefect_url, timeout=30) as api:
            found = api.post("/flow_runs/filter", json=running).raise_for_status().json()
            for run in (run for run in found if any(map(is_dead, run["tags"]))):
                state = {"state": crashed, "force": True}
                api.post(f"/flow_runs/{run['id']}/set_state", json=state).raise_for_status()
                print(f"flow run {run['name']}: marked as crashed, its process was killed")
                if "retrain" in run["tags"]:
                    page = f"{prefect_url.removesuffix('/api')}/runs/flow-run/{run['id']}"
                    alert("retrain", "retrain", "its process was killed", page)
    except (httpx.HTTPError, ValueError) as error:  # no reason not to run
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
