"""A take-in that is killed, or fails, anywhere: it happened or it did not."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.inboxes import check_taken, contents, take_all
from tests.retraining import git, sections
from tumorseg.core import git as versions
from tumorseg.importers import intake

pytest_plugins = ["tests.inboxes"]


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


class Countdown:
    """Raises at the nth of the calls that change something, before or after it is done."""

    def __init__(self, monkeypatch, raised: BaseException, at: int, *, after: bool) -> None:
        self.calls, self.at, self.after, self.raised = 0, at, after, raised
        targets = [(Path, "rename"), (shutil, "rmtree"), (shutil, "copytree")]
        targets += [(intake, name) for name in ("dvc", "write_json", "merge", "quarantine")]
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
    assert at > 8


@pytest.mark.slow
def test_an_error_at_any_step_is_undone_or_finished(template, tmp_path, monkeypatch, quick) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    undone = 0
    for at, root in copies(template, tmp_path, monkeypatch):
        with monkeypatch.context() as patched:
            countdown = Countdown(patched, full, at, after=False)
            with suppress(OSError):
                take_all(root)
        if countdown.calls < at:
            break
        if len(git(root, "log", "--format=%s").splitlines()) == 1:  # not recorded yet
            undone += 1
            intake.recover(sections(root)[2])
            assert contents(root / "data") == contents(template / "data")
            assert contents(root / "inbox") == contents(template / "inbox")
            assert (root / "data.dvc").read_bytes() == (template / "data.dvc").read_bytes()
        take_all(root)
        check_taken(root, template)
    assert undone > 4 and at > 8
