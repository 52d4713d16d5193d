"""Finding, naming and reading files, for all importers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tumorseg.errors import InputError


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
