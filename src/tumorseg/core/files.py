"""Files that are either whole or absent, and locks on what one process at a time may do."""

import fcntl
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tumorseg.core.errors import InputError, StageError

FULL = "the disk is full"
_ROOM = 2**20  # bytes below which nothing of ours can be written
# The last is NumPy's.
_FULL = re.compile(
    r"No space left on device|disk is full|quota exceeded|\d requested and \d+ written", re.I
)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` and renames it at the end, unless an error came.

    The name keeps the suffix, since several writers choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def new_array(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.uint8]]":
    """A new .npy file of that shape, uint8, mapped into memory for writing.

    Its room is taken at once: where the disk is full that is an OSError, and would be a SIGBUS once
    the array is written.
    """
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it is there, and all in it, also where its modes forbid that.

    What was copied from a medium that cannot be written has such modes.
    """
    if not folder.exists():
        return
    try:
        shutil.rmtree(folder)
    except PermissionError:
        os.chmod(folder, stat.S_IRWXU)
        for parent, names, _ in os.walk(folder):
            for path in (Path(parent, name) for name in names):
                if not path.is_symlink():
                    path.chmod(stat.S_IRWXU)
        shutil.rmtree(folder)


def move_folder(source: Path, target: Path) -> None:
    """Moves a folder, across file systems too; may be repeated after it was cut off."""
    if target.exists() or not source.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    remove_folder(partial)
    try:
        source.rename(target)
    except OSError:
        shutil.copytree(source, partial, symlinks=True)
        partial.rename(target)


@contextmanager
def told_if_full(untouched: str) -> Iterator[None]:
    """Turns a full disk into a StageError, which names no file: it may go to an alert.

    Args:
        untouched: What is as it was nevertheless, in words.
    """
    try:
        yield
    except (OSError, sqlite3.Error, InputError) as error:
        if not says_full(str(error)):
            raise
        raise StageError(f"{FULL}: make room and start again; {untouched}") from None


def says_full(words: str) -> bool:
    """Whether a message is about a full disk; libraries, DVC and git say it in words alone."""
    return bool(_FULL.search(words))


@contextmanager
def ended_if_full(
    process: subprocess.Popen[Any], folder: Path = Path(), seconds: float = 60.0
) -> Iterator[threading.Event]:
    """Ends a DVC process that goes on by itself where nothing can be written.

    Its table of known files tries for ever to begin a transaction on a full disk. While it waits
    for a stage, that one meets the disk and says so.

    Args:
        process: The child.
        folder: On the disk in question.
        seconds: For how long there must have been no room.

    Yields:
        Set once it was ended so.
    """
    full, over = threading.Event(), threading.Event()

    def watch() -> None:
        without = 0.0
        while not over.wait(seconds / 20):
            stuck = shutil.disk_usage(folder).free < _ROOM and not _has_children(process.pid)
            without = without + seconds / 20 if stuck else 0.0
            if without >= seconds and process.poll() is None:
                full.set()
                process.kill()
                return

    thread = threading.Thread(target=watch, name="room", daemon=True)
    thread.start()
    try:
        yield full
    finally:
        over.set()
        thread.join()


def _has_children(pid: int) -> bool:
    return any(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))


def leads_out(path: Path, root: Path) -> bool:
    """Whether a path, its links followed, is outside a folder; DVC's links to its cache are not."""
    target = Path(os.path.realpath(path))
    inside = target.is_relative_to(os.path.realpath(root))
    return not inside and target.parts[-4:-2] != ("files", "md5")


@contextmanager
def locked(path: Path, doing: str, patience_seconds: float) -> Iterator[None]:
    """Holds a lock file for the context; it is free again when its holder ends, however it ends.

    Args:
        path: The lock file; it holds who has it, for people.
        doing: What the holder does, for the message to those who wait.
        patience_seconds: How long to wait for it.

    Raises:
        InputError: Another process kept it for that long.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_seconds
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise InputError(
                        f"{path}: is held by {file.read().strip() or 'another process'}; wait "
                        "until it has ended, or end it, and try again"
                    ) from None
                time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} ({doing})\n")
        file.flush()
        yield
