"""A take-in that is killed, or meets a full disk, anywhere: it happened or it did not."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.inboxes import check_taken, contents, take_all
from tests.retraining import git
from tumorseg.core import git as versions
from tumorseg.core.errors import InputError, StageError
from tumorseg.importers import intake

pytest_plugins = ["tests.inboxes"]


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


class Countdown:
    """Raises at the nth of the calls that change something, before or after it is done."""

    def __init__(self, monkeypatch, raised: BaseException, at: int, *, after: bool) -> None:
        self.calls, self.at, self.after, self.raised = 0, at, after, raised
        targets = [(Path, "rename"), (shutil, "rmtree"), (shutil, "copytree")]
        targets += [(intake, name) for name in ("dvc", "write_json", "merge", "set_aside")]
        for owner, name in [*targets, (versions, "commit")]:
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, function):
        def call(*args, **kwargs):
            self.calls += 1
            mine = self.calls == self.at
            if mine and not self.after:
                raise self.raised
            result = function(*args, **kwargs)
            if mine:
                raise self.raised
            return result

        return call


def copies(template: Path, tmp_path: Path, monkeypatch) -> Iterator[tuple[int, Path]]:
    """Numbers from 1, with a copy of the repository for each."""
    for at in range(1, 100):
        root = tmp_path / str(at)
        shutil.copytree(template, root, symlinks=True)
        monkeypatch.chdir(root)
        yield at, root
        shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_step_a_rerun_finishes(template, tmp_path, monkeypatch, quick, after) -> None:
    for at, root in copies(template, tmp_path, monkeypatch):
        with monkeypatch.context() as patched:
            countdown = Countdown(patched, Killed(), at, after=after)
            with suppress(Killed):
                take_all(root)
        if countdown.calls < at:
            break
        take_all(root)
        check_taken(root, template)
    assert at > 12


@pytest.mark.slow
def test_a_full_disk_leaves_everything_as_it_was(template, tmp_path, monkeypatch, quick) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/data/train/a patient's name.png")
    kept = 0
    for at, root in copies(template, tmp_path, monkeypatch):
        with monkeypatch.context() as patched:
            countdown = Countdown(patched, full, at, after=False)
            if countdown.calls >= at:
                break
            try:
                take_all(root)
            except StageError as error:
                assert "the disk is full" in str(error) and "name" not in str(error)
                assert "\n" not in str(error)
            else:
                break
        if len(git(root, "log", "--format=%s").splitlines()) == 1:  # not recorded yet
            kept += 1
            assert contents(root / "data") == contents(template / "data")
            assert contents(root / "inbox") == contents(template / "inbox")
            assert (root / "data.dvc").read_bytes() == (template / "data.dvc").read_bytes()
        take_all(root)
        check_taken(root, template)
    assert kept > 6 and at > 12


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_while_it_is_taken_back_it_never_happened(
    template, tmp_path, monkeypatch, quick, after
) -> None:
    def refused(*_: object) -> None:
        raise InputError("git commit: not on a Friday")

    kills = 0
    for at, root in copies(template, tmp_path, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(versions, "commit", refused)
            countdown = Countdown(patched, Killed(), at, after=after)
            try:
                take_all(root)
            except Killed:
                kills += 1
            except StageError:
                if countdown.calls < at:
                    break
        take_all(root)
        check_taken(root, template)
    assert kills > 20 and countdown.calls < at


@pytest.mark.slow
def test_a_process_killed_for_real_in_dvc_add_loses_nothing(repository, template) -> None:
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from tests.retraining import sections\n"
        "from tumorseg.data import intake\n"
        "real = intake.dvc\n"
        "def dying(*words):\n"
        "    real(*words)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "intake.dvc = dying\n"
        "parts = sections(Path.cwd())\n"
        "intake.stage(Path('inbox/monday'), *parts)\n"
        "intake.finish(parts[2])\n"
    )
    place = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[1])])
    place = os.pathsep.join([str(Path(__file__).parents[1] / "src"), place])
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": place})
    assert done.returncode == -9 and intake.unfinished()
    take_all(repository)
    check_taken(repository, template)
