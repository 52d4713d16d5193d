"""Which files are segmented, and what their masks are called."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from tumorseg.core.errors import InputError

ENDINGS = ("_mask.png", "_seg.dcm", "_mask.nii.gz")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom", ".nii", ".nii.gz", ".zip")
_DICOM = (".dcm", ".dicom")


@dataclass(frozen=True)
class Job:
    """One thing to segment.

    Attributes:
        name: What the table calls it.
        files: One file, or the DICOM files of a folder, which are taken as one series.
        folder: Where its mask goes.
        stem: What the mask's name starts with; no other job has the same in the same folder.
    """

    name: str
    files: tuple[Path, ...]
    folder: Path
    stem: str

    def read(self) -> bytes:
        """The file's bytes, or a zip of the series.

        Raises:
            OSError: It cannot be read.
        """
        if len(self.files) == 1:
            return self.files[0].read_bytes()
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number, path in enumerate(self.files):
                archive.writestr(f"{number}.dcm", path.read_bytes())
        return buffer.getvalue()

    def target(self, ending: str) -> Path:
        """Where the mask goes."""
        return self.folder / f"{self.stem}{ending}"


def ending_of(data: bytes) -> str:
    """What the mask's name will end in, by the first bytes of the file."""
    if data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return "_mask.png"
    is_dicom = data[128:132] == b"DICM" or data.startswith(b"PK")
    return "_seg.dcm" if is_dicom else "_mask.nii.gz"


def plan(paths: Sequence[Path], output: Path | None = None) -> list[Job]:
    """Lists what to segment and where the masks go.

    Folders are searched through, linked ones too, each once; their masks of an earlier run are left
    out. Masks go beside their files, or under `output`, with the folders that were searched through
    as they are.

    Args:
        paths: Files and folders.
        output: Where to; beside each file if None.

    Raises:
        InputError: A path does not exist, a folder cannot be read, or nothing was found.
    """
    found: dict[tuple[Path, ...], tuple[str, Path]] = {}  # files → name and folder of the mask
    for path in paths:
        if path.is_dir():
            for files, name in _search(path):
                inside = files[0].parent.relative_to(path)
                found.setdefault(files, (name, output / inside if output else files[0].parent))
        elif path.exists():
            found.setdefault((path,), (path.name, output or path.parent))
        else:
            raise InputError(f"{path}: does not exist")
    if not found:
        raise InputError("nothing to segment was found: name JPEG, PNG, DICOM, NIfTI or zip files")
    plain = Counter((folder, _stem(name)) for name, folder in found.values())
    jobs: list[Job] = []
    taken: set[tuple[Path, str]] = set()
    for files, (name, folder) in found.items():
        # a.jpg and a.png: their masks carry the whole names; two a.jpg: the later one a number.
        whole = name if plain[folder, _stem(name)] > 1 else _stem(name)
        stem, number = whole, 1
        while (folder, stem) in taken:
            number += 1
            stem = f"{whole}-{number}"
        taken.add((folder, stem))
        shown = str(files[0] if len(files) == 1 else files[0].parent)
        jobs.append(Job(shown, files, folder, stem))
    return jobs


def _search(root: Path) -> Iterator[tuple[tuple[Path, ...], str]]:
    """Files to segment below a folder, each with a name; the DICOM files of a folder as one."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be searched through ({error.strerror})")

    seen: set[Path] = set()
    for parent, folders, names in os.walk(root, onerror=fail, followlinks=True):
        if (real := Path(parent).resolve()) in seen:  # by way of a link
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(parent, n) for n in sorted(names) if not n.startswith(".")]
        paths = [path for path in paths if not path.name.endswith(ENDINGS)]
        series = tuple(path for path in paths if _is_dicom(path))
        if len(series) > 1:
            yield series, real.name
            paths = [path for path in paths if path not in series]
        for path in paths:
            if path in series or path.name.lower().endswith(_SUFFIXES):
                yield (path,), path.name


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in _DICOM:
        return True
    if path.name.lower().endswith(_SUFFIXES) or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # reported when it is read, if it was named itself
        return False


def _stem(name: str) -> str:
    """The name without the endings that tell its kind."""
    lower = name.lower()
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name
