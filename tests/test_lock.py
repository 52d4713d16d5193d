"""One retraining at a time, and what a dead one left."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress

import pytest

from tests.conftest import REPOSITORY
from tumorseg.core import lock, processes
from tumorseg.core.errors import StageError

HOLDER = """
    import os, subprocess, sys, time
    from pathlib import Path
    from tumorseg import lock
    with lock.noted("a-run", Path("runs")) as note, lock.hold(Path("lock"), "a-run") as held:
        lock.note_held(note)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                                 start_new_session=True)
        held.child(child.pid)
        print(child.pid, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """A process that holds the lock and has a child, as a retraining in a stage."""
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
    )
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.wait()
    with suppress(ProcessLookupError):  # ended by what is tested
        os.kill(child, signal.SIGKILL)


def test_who_holds_it_is_told_and_a_dead_owner_is_no_obstacle(holder, tmp_path, capsys) -> None:
    process, child = holder
    path, notes = tmp_path / "lock", tmp_path / "runs"
    sentence = rf"another retraining is running \(process {process.pid} on .+, since 20\d\d-.+ UTC"
    with pytest.raises(StageError, match=sentence), lock.hold(path):
        raise AssertionError("two at once")
    assert lock.dead_runs(notes) == []
    process.kill()
    process.wait()
    os.kill(child, 0)  # the child outlives it
    with lock.hold(path, "next") as held:
        assert f"process {process.pid} left running" in capsys.readouterr().out
        assert lock.dead_runs(notes, lock_is_ours=True) == ["a-run"]
        deadline = time.monotonic() + 5
        while processes.process(child).began and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes.process(child).began == ""
        told = json.loads(path.read_text())
        assert told["owner"]["pid"] == os.getpid() and told["run"] == "next"
        held.child(os.getpid())
    assert path.read_text() == ""
    lock.forget_run("a-run", notes)
    assert lock.dead_runs(notes) == []


def test_two_threads_of_one_process_do_not_share_it(tmp_path) -> None:
    found = []

    def other() -> None:
        try:
            with lock.hold(tmp_path / "lock"):
                found.append("held")
        except StageError:
            found.append("refused")

    with lock.hold(tmp_path / "lock"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert found == ["refused", "held"]


def test_a_number_that_is_another_s_by_now_is_left_alone(tmp_path) -> None:
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    try:
        stale = vars(processes.process(bystander.pid)) | {"began": "1"}
        dead = vars(processes.process()) | {"began": "1"}
        (tmp_path / "lock").write_text(json.dumps({"owner": dead, "child": stale}))
        with lock.hold(tmp_path / "lock"):
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_of_another_host_s_process_only_the_lock_tells(tmp_path) -> None:
    elsewhere = vars(processes.process()) | {"host": "elsewhere"}
    for run, held in (("had-it", True), ("waits", False)):
        (tmp_path / f"{run}.json").write_text(json.dumps(elsewhere | {"held": held}))
    (tmp_path / "torn.json").write_text("{")
    assert lock.dead_runs(tmp_path) == []
    assert lock.dead_runs(tmp_path, lock_is_ours=True) == ["had-it"]
    with lock.noted("mine", tmp_path):
        assert lock.dead_runs(tmp_path, lock_is_ours=True) == ["had-it"]
    assert not (tmp_path / "mine.json").exists()
