"""A batch's way into the data set: exactly what it holds, recorded, or a sentence."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support.inboxes import Batch, check_taken, picture, take_all
from tests.support.retraining import git
from tests.support.samples import contents
from tumorseg.core import git as versions
from tumorseg.core.errors import InputError, StageError
from tumorseg.data import dataset
from tumorseg.importers import intake

pytest_plugins = ["tests.support.inboxes"]


def test_a_batch_joins_exactly_and_is_recorded(repository, template) -> None:
    take_all(repository)
    check_taken(repository, template)
    assert dataset.dvc("status", "data.dvc", "--json").strip() == "{}"
    # The version before can be had again.
    git(repository, "checkout", "-q", "HEAD~1", "--", "data.dvc")
    dataset.dvc("checkout", "--quiet")
    assert contents(repository / "data") == contents(template / "data")


def test_nothing_else_that_is_in_the_works_is_committed(repository) -> None:
    (repository / "params.yaml").open("a").write("# mine\n")
    git(repository, "add", "params.yaml")
    (repository / "note.txt").write_text("mine")
    take_all(repository)
    assert git(repository, "show", "--format=%an", "--name-only", "HEAD").split() == [
        "Somebody", "data.dvc",
    ]  # fmt: skip
    left = git(repository, "status", "--porcelain").splitlines()
    assert left == ["M  params.yaml", "?? note.txt"]


def test_without_an_identity_the_commit_has_a_default(repository, monkeypatch, tmp_path) -> None:
    git(repository, "config", "--unset", "user.name")
    git(repository, "config", "--unset", "user.email")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", os.devnull)
    (repository / "data.dvc").open("a").write("# changed\n")
    assert versions.commit(["data.dvc", "missing"], "Mine")
    author = git(repository, "log", "-1", "--format=%an %ae").split()
    assert author == ["tumorseg", "tumorseg@localhost"]
    assert versions.commit(["data.dvc"], "Nothing") is None


def test_a_record_changed_by_hand_stops_it_with_a_sentence(repository) -> None:
    text = (repository / "data.dvc").read_text()
    (repository / "data.dvc").write_text(text + "# mine\n")
    before = contents(repository / "data")
    with pytest.raises(InputError, match=r"data\.dvc: differs from the last commit"):
        take_all(repository)
    (repository / "data.dvc").write_text(text)
    (repository / "data" / "train" / "mine.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match="dvc add data"):
        take_all(repository)
    (repository / "data" / "train" / "mine.jpg").unlink()
    assert contents(repository / "data") == before and (repository / "inbox" / "monday").exists()
    shutil.rmtree(repository / ".git")
    with pytest.raises(InputError, match="need a git repository"):
        take_all(repository)
    assert not list(repository.glob(".data*"))


def test_what_dvc_or_git_refuse_is_taken_back(repository, template, monkeypatch, capsys) -> None:
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not on a Friday >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(StageError, match="no new data version, since it could not be recorded"):
        take_all(repository)
    assert "not on a Friday" in capsys.readouterr().out
    assert contents(repository / "data") == contents(template / "data")
    assert contents(repository / "inbox") == contents(template / "inbox")
    assert not git(repository, "status", "--porcelain")
    hook.unlink()
    take_all(repository)
    check_taken(repository, template)


def test_what_comes_late_stays_in_the_inbox(repository, quick, monkeypatch) -> None:
    late, real = Path("inbox/monday/late.jpg"), intake.dvc

    def slow(*words: str) -> str:
        late.write_bytes(b"late")
        return real(*words)

    with monkeypatch.context() as patched:
        patched.setattr(intake, "dvc", slow)
        take_all(repository)
    assert late.exists()
    again = take_all(repository)[-1]
    assert again.train + again.valid == 0 and again.refused["duplicate"] == 8


def test_a_batch_of_which_nothing_joins_makes_no_version(repository, quick) -> None:
    shutil.rmtree("inbox/monday")
    lone = Batch(repository / "inbox" / "odd")
    lone.add("flat.png", picture(1) * 0 + 9)
    lone.write()
    (taken,) = take_all(repository)
    assert taken.before == taken.after and taken.refused == {"finding": 1}
    assert len(git(repository, "log", "--format=%s").splitlines()) == 1
    (aside,) = (repository / "quarantine").iterdir()
    assert sorted(path.name for path in aside.iterdir()) == [
        "_annotations.coco.json", "flat.png", "quarantine.csv",
    ]  # fmt: skip
