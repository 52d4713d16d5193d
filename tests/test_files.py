"""Files that are whole or absent, and a full disk."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tumorseg.core import files
from tumorseg.core.errors import InputError
from tumorseg.data import dataset

STUCK = "import time\nwhile True: time.sleep(0.01)"
WAITING = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {STUCK!r}], timeout=5)"


def run(code: str, monkeypatch, free: int, seconds: float, patience: float) -> tuple[bool, float]:
    """Whether a process was ended for want of room, and after how many seconds it had ended."""
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    start = time.monotonic()
    with (
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process,
        files.ended_if_full(process, seconds=seconds) as full,
    ):
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    return full.is_set(), time.monotonic() - start


def test_what_goes_on_without_room_is_ended(monkeypatch) -> None:
    full, seconds = run(STUCK, monkeypatch, 1000, 1, 60)
    assert full and 1 <= seconds < 60


@pytest.mark.parametrize(("code", "free"), [(STUCK, 2**30), (WAITING, 0), ("pass", 0)])
def test_with_room_or_a_child_or_soon_over_it_is_left_alone(monkeypatch, code, free) -> None:
    full, _ = run(code, monkeypatch, free, 2, 4)
    assert not full


def test_a_folder_goes_whatever_its_modes(tmp_path, monkeypatch) -> None:
    deep = tmp_path / "dvd" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "x.png").write_bytes(b"x")
    for path in (deep, deep.parent, deep.parent.parent):
        path.chmod(0o500)
    real = files.shutil.rmtree

    def as_for_others(folder):  # root may do what others may not
        if any(p.is_dir() and not p.stat().st_mode & 0o200 for p in (folder, *folder.rglob("*"))):
            raise PermissionError
        real(folder)

    monkeypatch.setattr(files.shutil, "rmtree", as_for_others)
    files.remove_folder(tmp_path / "dvd")
    assert not (tmp_path / "dvd").exists()
    files.remove_folder(tmp_path / "dvd")


def test_dvc_without_room_is_one_sentence(monkeypatch, tmp_path) -> None:
    (tmp_path / "dvc.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr(files.ended_if_full.__wrapped__, "__defaults__", (tmp_path, 0.4))
    with pytest.raises(InputError, match="dvc add: the disk is full") as told:
        dataset.dvc("add", "data")
    assert files.says_full(str(told.value))
