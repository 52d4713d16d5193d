"""A batch's way into the data set: whole or not at all, wherever it is cut off."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.retraining import git, make_repository, masks, phantom_batch, sections, variables
from tests.test_inbox import Batch, picture
from tumorseg import versions
from tumorseg.data import dataset, inbox, intake
from tumorseg.errors import InputError, StageError


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.fixture(scope="module")
def template(phantom, tmp_path_factory) -> Path:
    """A repository with a batch in its inbox: eight good slices and two that must stay out."""
    root = make_repository(tmp_path_factory.mktemp("template") / "repository", phantom)
    folder = phantom_batch(root / "inbox" / "monday", 8, seed=7)
    document = json.loads((folder / "_annotations.coco.json").read_text())
    (test_slice, *_) = sorted((phantom / "test").glob("*.jpg"))
    shutil.copy(test_slice, folder / "sneaked.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("sneaked.jpg", "broken.jpg"):
        entry = {"id": len(document["images"]), "file_name": name, "width": 96, "height": 96}
        document["images"].append(entry)
    (folder / "_annotations.coco.json").write_text(json.dumps(document))
    (folder / "unlisted.png").write_bytes(b"a picture that no JSON lists")
    return root


@pytest.fixture
def repository(template, tmp_path, monkeypatch) -> Path:
    root = tmp_path / "repository"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.chdir(root)
    for name, value in variables(root).items():
        monkeypatch.setenv(name, value)
    return root


def take_all(root: Path) -> list[intake.Taken]:
    """What the flow does with an inbox."""
    parts = sections(root)
    intake.tidy()
    if intake.unfinished():
        intake.finish(parts[2])
    for batch in inbox.batches(Path("inbox"), 0)[0]:
        if intake.stage(batch, *parts):
            intake.finish(parts[2])
    return intake.taken_in()


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def check_taken(root: Path, template: Path) -> None:
    """Everything is as a take-in must leave it, however it came to its end."""
    before, new = {}, masks_of(template / "inbox" / "monday")
    for split in ("train", "valid", "test"):
        before |= {f"{split}/{k}": v for k, v in masks(template / "data" / split).items()}
    after = {}
    for split in ("train", "valid", "test"):
        after |= {f"{split}/{k}": v for k, v in masks(root / "data" / split).items()}
    assert before.items() <= after.items()
    joined = {k.split("/")[1]: v for k, v in after.items() if k not in before}
    assert joined == {k: v for k, v in new.items() if k.startswith("new7")} and len(joined) == 8
    assert contents(root / "data" / "test") == contents(template / "data" / "test")
    (aside,) = (root / "quarantine").iterdir()
    lines = (aside / "quarantine.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0] == "batch,name,reason,why"
    assert {line.split(",")[1]: line.split(",")[2] for line in lines[1:]} == {
        "sneaked.jpg": "test_duplicate",
        "broken.jpg": "unusable",
        "unlisted.png": "unreadable",
    }
    # What was refused can be mended and put back; all of a batch of which a part was not read.
    assert masks_of(aside)["sneaked.jpg"] == new["sneaked.jpg"]
    assert contents(aside / "original") == contents(template / "inbox" / "monday")
    assert list((root / "inbox").iterdir()) == []
    assert not list(root.glob(".data*")) and not git(root, "status", "--porcelain")
    log = git(root, "log", "--format=%s").splitlines()
    assert len(log) == 2 and log[0].startswith("New data: batch ")
    assert git(root, "show", "--format=", "--name-only", "HEAD").split() == ["data.dvc"]
    (taken,) = intake.taken_in()
    assert (taken.slices, taken.train + taken.valid) == (11, 8)
    assert taken.before != taken.after == intake.version()


def masks_of(folder: Path) -> dict:
    return masks(folder)


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
    with pytest.raises(InputError, match="no git repository"):
        take_all(repository)
    assert not list(repository.glob(".data*"))


@pytest.fixture
def quick(monkeypatch) -> None:
    """`dvc add` and `dvc status` in no time, for tests that do them often."""

    def digest() -> str:
        found = hashlib.md5()
        for name, content in sorted(contents(Path("data")).items()):
            found.update(name.encode() + content)
        return found.hexdigest()

    def dvc(*words: str) -> str:
        assert words == ("add", "data")
        record = yaml.safe_load(Path("data.dvc").read_text())
        record["outs"][0]["md5"] = digest()
        Path("data.dvc").write_text(yaml.safe_dump(record))
        return ""

    monkeypatch.setattr(intake, "dvc", dvc)
    monkeypatch.setattr(intake, "refuse_to_lose", lambda data: None)


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


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_step_a_rerun_finishes(template, tmp_path, monkeypatch, quick, after) -> None:
    for at in range(1, 100):
        root = tmp_path / str(at)
        shutil.copytree(template, root, symlinks=True)
        monkeypatch.chdir(root)
        with monkeypatch.context() as patched:
            countdown = Countdown(patched, Killed(), at, after=after)
            with suppress(Killed):
                take_all(root)
        if countdown.calls < at:
            break
        take_all(root)
        check_taken(root, template)
        shutil.rmtree(root)
    assert at > 12


@pytest.mark.slow
def test_a_full_disk_leaves_everything_as_it_was(template, tmp_path, monkeypatch, quick) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/data/train/a patient's name.png")
    kept = 0
    for at in range(1, 100):
        root = tmp_path / str(at)
        shutil.copytree(template, root, symlinks=True)
        monkeypatch.chdir(root)
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
        shutil.rmtree(root)
    assert kept > 6 and at > 12


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
    assert not git(repository, "status", "--porcelain") and not intake.unfinished()
    hook.unlink()
    take_all(repository)
    check_taken(repository, template)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_while_it_is_taken_back_it_never_happened(
    template, tmp_path, monkeypatch, quick, after
) -> None:
    def refused(*_: object) -> None:
        raise InputError("git commit: not on a Friday")

    kills = 0
    for at in range(1, 100):
        root = tmp_path / str(at)
        shutil.copytree(template, root, symlinks=True)
        monkeypatch.chdir(root)
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
        shutil.rmtree(root)
    assert kills > 20 and countdown.calls < at


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove what nobody may write")
def test_a_batch_that_nobody_may_write_is_taken_in(repository, template, quick) -> None:
    batch = Path("inbox/monday")
    batch.chmod(0o555)
    take_all(repository)
    check_taken(repository, template)


def test_what_comes_late_stays_in_the_inbox(repository, quick) -> None:
    parts, batch = sections(repository), Path("inbox/monday")
    assert intake.stage(batch, *parts)
    (batch / "late.jpg").write_bytes(b"late")
    intake.finish(parts[2])
    assert (batch / "late.jpg").exists()
    again = take_all(repository)[-1]
    assert again.train + again.valid == 0 and again.refused["duplicate"] == 8


def test_a_batch_that_changes_while_it_is_read_is_left(repository, quick, monkeypatch) -> None:
    real = intake.examine

    def slow(batch, *rest):
        (batch / "late.jpg").write_bytes(b"late")
        return real(batch, *rest)

    monkeypatch.setattr(intake, "examine", slow)
    assert not intake.stage(Path("inbox/monday"), *sections(repository))
    assert not list(repository.glob(".data*")) and not intake.unfinished()


def test_a_batch_of_which_nothing_joins_makes_no_version(repository, quick) -> None:
    shutil.rmtree("inbox/monday")
    lone = Batch(repository / "inbox" / "odd")
    lone.add("flat.png", picture(1) * 0 + 9)
    lone.write()
    (taken,) = take_all(repository)
    assert taken.before == taken.after and taken.refused == {"finding": 1} and not taken.keep
    assert len(git(repository, "log", "--format=%s").splitlines()) == 1
    (aside,) = (repository / "quarantine").iterdir()
    assert sorted(path.name for path in aside.iterdir()) == [
        "_annotations.coco.json", "flat.png", "quarantine.csv",
    ]  # fmt: skip


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
