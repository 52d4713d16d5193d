"""Failures of what runs around a flow: one sentence each; and runs whose process was killed."""

import errno
import os
import subprocess
import sys
from contextlib import ExitStack

import httpx
import pytest
from mlflow.exceptions import MlflowException

from pipelines import _flow
from tests.conftest import REPOSITORY
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
    ("error", "sentence"),
    [
        (InputError("data/: is empty"), "data/: is empty"),
        (StageError("stage train failed"), "stage train failed"),
        (OSError(errno.ENOSPC, "No space left", "arrays.npy"), "a full disk: make room), type"),
        (httpx.ConnectError("refused"), f"Prefect at {PREFECT} does not work (ConnectError)"),
        (unreachable(), "does not work (RuntimeError)"),
        (answer(500), f"Prefect at {PREFECT} does not work (status 500)"),
        (
            MlflowException("API request failed with exception HTTPConnectionPool(host='h')"),
            "MLflow at postgresql+psycopg2://db/mlflow does not work (API request failed with",
        ),
        (KeyError("winner"), None),  # a mistake in the code keeps its traceback
    ],
)
def test_a_failure_that_needs_no_traceback_is_one_sentence(
    error, sentence, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", PREFECT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://me:secret@db/mlflow")
    monkeypatch.setattr(os, "_exit", sys.exit)

    def entry() -> None:
        raise error

    with pytest.raises(SystemExit if sentence else KeyError):
        _flow.main(entry)
    printed = capsys.readouterr().err
    assert not sentence or sentence in printed
    assert "secret" not in printed and len(printed.splitlines()) == bool(sentence)


def test_an_mlflow_that_does_not_answer_is_not_one_without_the_run(monkeypatch) -> None:
    class Away:
        def get_run(self, run_id: str) -> None:
            raise MlflowException("it does not answer")  # error code INTERNAL_ERROR

    monkeypatch.setattr(tracking, "connect", Away)
    monkeypatch.setattr(tracking, "experiment_id", lambda experiment: "1")
    with pytest.raises(MlflowException, match="does not answer"):
        tracking.complete_run("0" * 32, {}, {}, [])
    with pytest.raises(MlflowException, match="does not answer"):
        tracking.start_run("tumorseg", "unet", 0, {}, run_id="0" * 32)


CODE = """
import sys, time
from pipelines._flow import main, stage
@stage(name=sys.argv[1])
def wait():
    print("begun", flush=True)
    time.sleep(120)
main(wait)
"""


@pytest.mark.long
def test_a_killed_flow_is_marked_as_crashed_and_a_living_one_is_not(prefect_url, tmp_path) -> None:
    path = {"PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}", "PREFECT_API_URL": prefect_url}

    def state(name: str) -> str:
        named = {"flows": {"name": {"any_": [name]}}}
        (run,) = httpx.post(f"{prefect_url}/flow_runs/filter", json=named, timeout=30).json()
        return run["state_type"]

    with ExitStack() as stack:
        flows = {}
        for name in ("dead", "living"):
            flows[name] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CODE, name],
                    cwd=tmp_path,
                    env=os.environ | path,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            stack.callback(flows[name].kill)
        for flow in flows.values():
            assert any("begun" in line for line in flow.stdout)
        flows["dead"].kill()
        flows["dead"].wait()
        assert state("dead") == state("living") == "RUNNING"
        mark_crashed(prefect_url)
        assert state("dead") == "CRASHED" and state("living") == "RUNNING"


def test_a_prefect_that_does_not_answer_stops_nothing(capsys) -> None:
    mark_crashed(PREFECT)
    assert "could not be marked" in capsys.readouterr().out
