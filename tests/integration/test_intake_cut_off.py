"""A take-in that is killed anywhere: it happened or it did not."""

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.inboxes import check_taken, take_all
from tumorseg.core import git as versions
from tumorseg.importers import intake

pytest_plugins = ["tests.support.inboxes"]


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


class Countdown:
    """Raises at the nth of the calls that change something, before or after it is done."""

    def __init__(self, monkeypatch, at: int, *, after: bool) -> None:
        self.calls, self.at, self.after = 0, at, after
        targets = [(Path, "rename"), (shutil, "rmtree"), (shutil, "copytree")]
        targets += [(intake, name) for name in ("dvc", "write_json", "merge", "quarantine")]
        for owner, name in [*targets, (versions, "commit")]:
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, function):
        def call(*args, **kwargs):
            self.calls += 1
            mine = self.calls == self.at
            if mine and not self.after:
                raise Killed
            result = function(*args, **kwargs)
            if mine:
                raise Killed
            return result

        return call


@pytest.mark.long
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_step_a_rerun_finishes(template, tmp_path, monkeypatch, quick, after) -> None:
    for at in range(1, 100):
        root = tmp_path / str(at)
        shutil.copytree(template, root, symlinks=True)
        monkeypatch.chdir(root)
        with monkeypatch.context() as patched:
            countdown = Countdown(patched, at, after=after)
            with suppress(Killed):
                take_all(root)
        if countdown.calls < at:
            break
        take_all(root)
        check_taken(root, template)
        shutil.rmtree(root)
    assert at > 8
