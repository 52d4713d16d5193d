"""Finding, naming and reading files, for all importers."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tumorseg.core.errors import InputError
from tumorseg.core.files import leads_out
from tumorseg.data.coco import printable


class Names:
    """Hands out file names that every file system keeps apart."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def __call__(self, stem: str, suffix: str, group: str | None) -> str:
        """A name like `stem` + `suffix` that was not given before.

        Digits that begin a name are read as the place in a scan that all images share. Where
        groups are known, each has its own scan, so such a name gets a letter in front.
        """
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:150].strip("-.") or "slice"
        if group is not None and stem[0].isdigit():
            stem = f"s{stem}"
        name, copy = f"{stem}{suffix}", 1
        while name.lower() in self.taken:
            name, copy = f"{stem}-{copy + 1}{suffix}", copy + 1
        self.taken.add(name.lower())
        return name


def visible_files(folder: Path) -> list[Path]:
    """All files under a folder, sorted, without hidden ones (macOS leaves `._NAME` in archives)."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(p.startswith((".", "__MACOSX")) for p in path.relative_to(folder).parts)
    )


def refuse_links_out(folder: Path) -> None:
    """Raises InputError if a link under a folder leads out of it: its target was never meant."""
    for path in _everything(folder):
        if path.is_symlink() and leads_out(path, folder):
            raise InputError(
                f"{printable(str(path))}: is a link that leads out of {folder}; put what it means "
                "in its place, or remove it"
            )


def refuse_uncopyable(folder: Path) -> None:
    """Raises InputError if something under a folder is no plain file or folder that can be read.

    Links to folders are refused since they may go round in circles.
    """
    for path in _everything(folder):
        if not os.path.isfile(path) and (path.is_symlink() or not os.path.isdir(path)):
            raise InputError(
                f"{printable(str(path))}: is neither a file nor a folder (a pipe, or a link that "
                "leads to a folder or nowhere); remove it"
            )
        if not os.access(path, os.R_OK):
            raise InputError(f"{printable(str(path))}: may not be read; allow it")


def _everything(folder: Path) -> Iterator[Path]:
    for home, folders, files in os.walk(folder):
        yield from (Path(home, name) for name in sorted(folders + files))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what a library raises over a broken file into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # decoders' errors have nothing else in common
        reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); export it again") from None
