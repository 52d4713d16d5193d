"""Files that are either whole or absent."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


def leads_out(path: Path, root: Path) -> bool:
    """Whether a path, its links followed, is outside a folder; DVC's links to its cache are not."""
    target = Path(os.path.realpath(path))
    inside = target.is_relative_to(os.path.realpath(root))
    return not inside and target.parts[-4:-2] != ("files", "md5")
