"""The flow `retrain`: its steps with DVC's stages faked, against a real Prefect server."""

import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pandas as pd
import pytest
import yaml
from filelock import FileLock

from tests.conftest import REPOSITORY
from tests.support.retraining import DECISION, git, make_repository, phantom_batch, variables
from tests.support.samples import contents
from tests.support.webhook import webhook
from tumorseg.core.alerts import VARIABLE
from tumorseg.core.errors import StageError
from tumorseg.core.processes import marked
from tumorseg.data import dataset

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def template(phantom, tmp_path_factory) -> Path:
    root = make_repository(tmp_path_factory.mktemp("flow") / "repository", phantom, whole=True)
    phantom_batch(root / "inbox" / "Jane_Doe", 6, seed=7)
    return root


@pytest.fixture
def repository(template, tmp_path, monkeypatch, prefect_url) -> Path:
    root = tmp_path / "repository"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.chdir(root)
    for name, value in (variables(root) | {"PREFECT_API_URL": prefect_url}).items():
        monkeypatch.setenv(name, value)
    return root


@pytest.fixture
def alerts(monkeypatch):
    with webhook() as receiver:
        monkeypatch.setenv(VARIABLE, receiver.url)
        yield receiver.bodies


@contextmanager
def faked(monkeypatch, fail: Exception | None = None):
    """The flow with stages that only note that they ran, and perhaps one that fails in train."""
    import pipelines.retrain as module

    ran = []

    def reproduce(name):
        ran.append(name)
        if name == "train" and fail is not None:
            raise fail
        if name == "promote":
            module.DECISION.parent.mkdir(parents=True, exist_ok=True)
            module.DECISION.write_text(json.dumps(DECISION))
        return [name]

    monkeypatch.setattr(module, "reproduce", reproduce)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
        yield module.retrain, ran


def ask(what: str, body: dict) -> list[dict]:
    url = f"{os.environ['PREFECT_API_URL']}/{what}/filter"
    return httpx.post(url, json=body, timeout=30).raise_for_status().json()


def last_artifact() -> str:
    found = ask("artifacts", {"artifacts": {"key": {"any_": ["retrain"]}}, "sort": "CREATED_DESC"})
    return found[0]["data"]


def test_the_steps_their_page_and_what_is_committed(repository, monkeypatch) -> None:
    (repository / "reports").mkdir()
    (repository / "reports" / "metrics.json").write_text("{}")
    (repository / "reports" / "report.html").write_text("ignored")
    (repository / "note.txt").write_text("mine")
    git(repository, "add", "note.txt")
    with faked(monkeypatch) as (retrain, ran):
        retrain(because="a test")
        assert ran == list(yaml.safe_load(Path("dvc.yaml").read_text())["stages"])
        page = Path("reports/retrain.md").read_text()
        assert last_artifact() == page
        for part in (
            "# Retraining: the champion stays", "a test.", "Refused, mean Dice 0.4",
            "Champion now: version 1.", "| coco | 6 |", "` → `", "Ran: validate, split,",
        ):  # fmt: skip
            assert part in page, page
        assert "Jane" not in page
        log = git(repository, "log", "--format=%s").splitlines()
        assert log[0] == "Retrained: refused" and log[1].startswith("New data: batch")
        assert git(repository, "show", "--format=", "--name-only").split() == [
            "reports/metrics.json"
        ]
        assert git(repository, "status", "--porcelain").splitlines() == ["A  note.txt"]
        assert not any(Path("inbox").iterdir())
        retrain(because="a test")  # nothing new, and the page says so
        page = Path("reports/retrain.md").read_text()
        assert "Nothing came in." in page and ", as before." in page


def test_a_failure_is_told_and_its_data_are_in_the_next_page(
    repository, monkeypatch, alerts
) -> None:
    with faked(monkeypatch, StageError("stage train failed; later stages did not run")) as both:
        retrain, ran = both
        with pytest.raises(StageError, match="stage train failed"):
            retrain()
    assert ran == ["validate", "split", "augment", "train"]
    (body,) = alerts
    assert body["flow"] == "retrain" and body["stage"] == "repro train"
    assert body["sentence"] == "stage train failed; later stages did not run"
    assert "/runs/flow-run/" in body["run_url"]
    page = last_artifact()
    assert page.startswith("# Retraining: it failed, and the champion stays")
    assert "stage train failed" in page and "| coco | 6 |" in page
    with faked(monkeypatch) as (retrain, _):
        retrain()
    assert "| coco | 6 |" in last_artifact() and len(alerts) == 1


def test_retries_wait_longer_each_time(repository, monkeypatch, alerts) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["retrain"] |= {"retries": 2, "retry_delay_seconds": 0.2}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    blinked = OSError(errno.EIO, "the disk blinked")
    with faked(monkeypatch, blinked) as (retrain, ran), pytest.raises(OSError, match="blinked"):
        retrain()
    assert ran.count("train") == 3 and len(alerts) == 1


def test_a_full_disk_leaves_all_as_it_was_and_names_nobody(repository, monkeypatch, alerts) -> None:
    from tumorseg.importers import intake

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "inbox/Jane_Doe/1.png")

    monkeypatch.setattr(intake, "merge", full)
    before = {name: contents(Path(name)) for name in ("data", "inbox")}
    with faked(monkeypatch) as (retrain, ran), pytest.raises(OSError, match="No space left"):
        retrain()
    assert not ran and {name: contents(Path(name)) for name in before} == before
    assert alerts[0]["sentence"] == "OSError; the run's log says more"
    assert "Jane" not in json.dumps(alerts) + last_artifact()
    assert alerts[0]["stage"].startswith("take in ")


def test_two_at_once_are_refused_and_told(repository, monkeypatch, alerts) -> None:
    from pipelines.retrain import LOCK

    refused = pytest.raises(StageError, match="another retraining is running")
    with faked(monkeypatch) as (retrain, ran), FileLock(LOCK), refused:
        retrain()
    assert not ran and "another retraining is running" in alerts[0]["sentence"]
    assert len(git(repository, "log", "--format=%s").splitlines()) == 1


def test_a_clone_pulls_what_was_pushed(repository, monkeypatch, tmp_path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["retrain"]["push"] = ["dvc", "git"]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    remote = [sys.executable, "-m", "dvc", "remote", "add", "--quiet", "shared"]
    subprocess.run([*remote, str(tmp_path / "remote")], check=True)
    monkeypatch.setenv(dataset.REMOTE, "shared")
    git(repository, "commit", "-q", "-m", "A remote", "params.yaml", ".dvc/config")
    git(tmp_path, "clone", "-q", "--bare", str(repository), "origin")
    git(repository, "remote", "add", "origin", str(tmp_path / "origin"))
    git(repository, "fetch", "-q")
    git(repository, "branch", "-q", "--set-upstream-to", f"origin/{branch(repository)}")
    with faked(monkeypatch) as (retrain, _):
        retrain()
    assert not git(repository, "log", "--format=%s", "@{upstream}..")
    git(tmp_path, "clone", "-q", str(tmp_path / "origin"), "clone")
    monkeypatch.chdir(tmp_path / "clone")
    for name, value in variables(Path.cwd()).items():
        monkeypatch.setenv(name, value)
    assert not Path("data").exists()
    with faked(monkeypatch) as (retrain, _):
        retrain()
    assert contents(Path("data")) == contents(repository / "data")
    assert "Nothing came in." in last_artifact()


def branch(root: Path) -> str:
    return git(root, "branch", "--show-current").strip()


def test_a_dry_run_changes_nothing(repository) -> None:
    phantom_batch(repository / "inbox" / "second", 2, seed=9)
    (copied, *_) = sorted((repository / "data" / "test").glob("*.jpg"))
    document = json.loads((repository / "inbox/second/_annotations.coco.json").read_text())
    document["images"].append({"id": 99, "file_name": "t.jpg", "width": 96, "height": 96})
    (repository / "inbox/second/_annotations.coco.json").write_text(json.dumps(document))
    shutil.copy(copied, repository / "inbox" / "second" / "t.jpg")

    def everything() -> dict:
        logs = (".state/", ".dvc/tmp", ".git/index")
        return {k: v for k, v in contents(repository).items() if not k.startswith(logs)}

    before = everything()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.retrain", "--dry-run"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert everything() == before
    for words in (
        "inbox/Jane_Doe (coco, 6 slices): ", "would go to train", "1 to quarantine/",
        "t.jpg: is a test slice, byte for byte", "out of date by `dvc status`: validate, split",
    ):  # fmt: skip
        assert words in done.stdout
    assert not Path(".state/retrain").exists()


REAL = """
import pipelines.retrain as module
module.STAGES = ("validate", "split")
module.retrain()
"""


def test_killed_in_a_stage_the_next_run_ends_the_stage_and_goes_on(repository, alerts) -> None:
    decided = Path("artifacts/promote/decision.json")
    decided.parent.mkdir(parents=True)
    decided.write_text(json.dumps(DECISION))
    first = subprocess.Popen([sys.executable, "-c", REAL], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(left := marked(str(Path(".state/retrain.lock").resolve()))) < 2:  # dvc and a stage
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    first.kill()
    first.wait()
    assert all(process.is_running() for process in left) and not alerts
    again = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert not any(process.is_running() for process in left)
    named = {"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_DESC"}
    after, before = ask("flow_runs", named)[:2]
    assert (after["state_name"], before["state_name"]) == ("Completed", "Crashed")
    (body,) = alerts
    assert body["sentence"] == "its process was killed" and before["id"] in body["run_url"]
    table = pd.read_parquet("artifacts/split/manifest.parquet")
    assert table["split"].value_counts()["test"] == 5 and len(table) == 22 + 6
    assert "Ran: validate, split." in last_artifact() and "| coco | 6 |" in last_artifact()
    changed = git(repository, "show", "--format=", "--name-only", "HEAD").split()
    assert changed == ["dvc.lock", "reports/audit.json", "reports/split.json"]
    assert not git(repository, "status", "--porcelain")


DVC = """
import os, signal, subprocess, sys, time
print("Running stage 'train@unet-0':", flush=True)
if sys.argv[-1] == "fine":
    sys.exit()
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
if sys.argv[-1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
print("waits", flush=True)
time.sleep(600)
"""


def test_a_stage_s_children_end_with_it_or_before_the_next(tmp_path, monkeypatch) -> None:
    import pipelines.retrain as module

    (tmp_path / "dvc.py").write_text(DVC)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    mark = str(module.LOCK.resolve())
    with pytest.raises(StageError, match="stage killed failed; later stages did not run"):
        module.reproduce("killed")
    (left,) = marked(mark)
    assert module.reproduce("fine") == ["train@unet-0"] and not left.is_running()
    family = []

    def interrupt(*words: str) -> None:
        if words == ("waits",):
            family.extend(marked(mark))
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupt)
    with pytest.raises(KeyboardInterrupt):
        module.reproduce("long")
    assert len(family) == 2 and not any(process.is_running() for process in family)


def test_a_schedule_plans_runs_also_after_it_was_stopped_once(repository) -> None:
    named = {"deployments": {"name": {"any_": ["scheduled"]}}}
    query = named | {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}

    def state() -> tuple[bool, list[bool]]:
        """Whether runs are planned, and whether the deployment is paused."""
        return bool(ask("flow_runs", query)), [each["paused"] for each in ask("deployments", named)]

    for _ in range(2):
        command = [sys.executable, "-m", "pipelines.retrain", "--cron", "0 3 * * *"]
        with subprocess.Popen(command) as process:
            deadline = time.monotonic() + 240
            while state() != (True, [False]) and time.monotonic() < deadline:
                assert process.poll() is None, state()
                time.sleep(0.5)
            process.terminate()
        assert time.monotonic() < deadline and state() == (False, [True])


def test_prefect_yaml_has_flows_that_are_there() -> None:
    wanted = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    places = [each["entrypoint"] for each in wanted]
    assert places == ["pipelines/retrain.py:retrain", "pipelines/drift.py:drift"]
    for each, place in zip(wanted, places, strict=True):
        module, name = place.removesuffix(".py").replace("/", ".").replace(".py:", " ").split()
        flow = getattr(importlib.import_module(module), name)
        assert flow.name == name and each["concurrency_limit"] == 1
        assert each.get("parameters", {}).keys() <= flow.parameters.properties.keys()
