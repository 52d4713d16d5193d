"""Files that are either whole or absent."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np


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


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def new_array(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.uint8]]":
    """A new .npy file of that shape, uint8, mapped into memory for writing.

    Its disk space is allocated at once, since a full disk would later be a SIGBUS.

    Raises:
        OSError: The disk is full.
    """
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it is there, and all in it.

    Folders that were copied from a read-only medium are made writable first.
    """
    if not folder.exists():
        return
    try:
        shutil.rmtree(folder)
    except PermissionError:
        for parent, _, _ in os.walk(folder):
            os.chmod(parent, stat.S_IRWXU)
        shutil.rmtree(folder)


def leads_out(path: Path, root: Path) -> bool:
    """Whether a path, its links followed, is outside a folder; DVC's links to its cache are not."""
    target, inside = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if target.is_relative_to(inside):
        return False
    cache = _dvc_cache(inside)
    return cache is None or not target.is_relative_to(cache)


@lru_cache(maxsize=1)
def _dvc_cache(folder: Path) -> Path | None:
    """The cache to which DVC makes links where `cache.type` is symlink; None outside a project."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return Path(os.path.realpath(done.stdout.strip())) if done.returncode == 0 else None
