"""Failures of what runs around a flow: one sentence each; and runs whose process was killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from http.server import HTTPServer, SimpleHTTPRequestHandler
from threading import Thread

import httpx
import pytest
from mlflow.exceptions import MlflowException

from pipelines import _flow
from tests.conftest import REPOSITORY
from tumorseg.core import environment
from tumorseg.core.errors import InputError, StageError
from tumorseg.core.prefect_server import mark_crashed
from tumorseg.registry import runs as tracking

PREFECT = "http://127.0.0.1:9/api"


def answer(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", f"{PREFECT}/flow_runs/")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status))


def unreachable() -> RuntimeError:
    """What Prefect's client raises where no server ever answered."""
    error = RuntimeError(f"Failed to reach API at {PREFECT}")
    error.__cause__ = httpx.ConnectError("refused")
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("data/: is empty"), "data/: is empty"),
        (StageError("stage train failed"), "stage train failed"),
        (OSError(errno.ENOSPC, "No space left", "arrays.npy"), "a full disk: make room), type"),
        (httpx.ConnectError("refused"), f"Prefect at {PREFECT} does not work (ConnectError)"),
        (unreachable(), "does not work (RuntimeError)"),
        (answer(500), f"Prefect at {PREFECT} does not work (status 500)"),
        (
            MlflowException("API request failed with exception HTTPConnectionPool(host='h')"),
            "MLflow at postgresql://db/mlflow does not work (API request failed with",
        ),
    ],
)
def test_what_passes_by_is_one_sentence(error, told, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PREFECT_API_URL", PREFECT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db/mlflow")
    sentence = _flow.explained(error)
    assert sentence is not None and told in sentence
    assert "\n" not in sentence and "secret" not in sentence

    def entry() -> None:
        raise error

    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        _flow.main(entry)
    assert f"test_flow_faults: {sentence}" in (capsys.readouterr().err or str(ended.value))


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    def entry() -> None:
        raise KeyError("winner")

    assert _flow.explained(KeyError("winner")) is None
    with pytest.raises(KeyError):
        _flow.main(entry)


def test_an_mlflow_that_is_away_is_not_taken_for_one_without_the_run(monkeypatch, tmp_path) -> None:
    class Away:
        def get_run(self, run_id: str) -> None:
            raise MlflowException("it does not answer")  # error code INTERNAL_ERROR

    monkeypatch.setattr(tracking, "connect", Away)
    monkeypatch.setattr(tracking, "experiment_id", lambda experiment: "1")
    with pytest.raises(MlflowException, match="does not answer"):
        tracking.complete_run("0" * 32, {}, {}, [])
    with pytest.raises(MlflowException, match="does not answer"):
        tracking.start_run("tumorseg", "unet", 0, {}, run_id="0" * 32)


def test_an_mlflow_behind_an_account_is_not_called_silent(monkeypatch) -> None:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:  # a 404 is an answer
        Thread(target=server.handle_request, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{place}")
        assert tracking.unreachable() is None
    assert tracking.unreachable() == "ConnectionError"


def test_addresses_are_shown_without_passwords() -> None:
    shown = environment.without_password
    assert shown("postgresql+psycopg2://u:p@h:5432/d") == "postgresql+psycopg2://h:5432/d"
    assert shown("http://h:5000/a@b") == "http://h:5000/a@b"


@pytest.mark.slow
def test_a_killed_flow_is_marked_as_crashed_and_a_living_one_is_not(prefect_url, tmp_path) -> None:
    code = (
        "import sys, time\n"
        "from pipelines._flow import main, stage\n"
        "@stage(name=sys.argv[1])\n"
        "def wait():\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(120)\n"
        "main(wait)\n"
    )
    path = {"PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}", "PREFECT_API_URL": prefect_url}

    def post(address: str, body: dict) -> list[dict]:
        request = urllib.request.Request(
            prefect_url + address, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def state(name: str) -> str:
        (run,) = post("/flow_runs/filter", {"flows": {"name": {"any_": [name]}}})
        return run["state_type"]

    processes = {}
    for name in ("dead", "living"):
        log = (tmp_path / name).open("wb")
        processes[name] = subprocess.Popen(
            [sys.executable, "-c", code, name],
            cwd=tmp_path,
            env=os.environ | path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while not all(b"begun" in (tmp_path / name).read_bytes() for name in processes):
            assert time.monotonic() < deadline, (tmp_path / "dead").read_text()
            time.sleep(0.2)
        processes["dead"].send_signal(signal.SIGKILL)
        processes["dead"].wait()
        assert state("dead") == state("living") == "RUNNING"
        mark_crashed(prefect_url)
        assert state("dead") == "CRASHED" and state("living") == "RUNNING"
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    assert "Hook" not in (tmp_path / "living").read_text()


def test_a_prefect_that_cannot_be_asked_stops_nothing(capsys) -> None:
    mark_crashed(PREFECT)
    assert "could not be marked" in capsys.readouterr().out
