"""What became of each file of an archive: the lines that workers leave, and the table at the end.

Below the output folder, `.segment/` holds a line for each file that was begun or done, written by
whoever did it, so that nothing is done again after anybody was killed. `summary.csv` is made of
these lines at the end.
"""

import csv
import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path
from tumorseg.inference.predict_files import ENDINGS

SUMMARY = "summary.csv"
RECORD = ".segment"
DONE = "done.jsonl"
_UNFINISHED = re.compile(r"\.\d+\..+(" + "|".join(map(re.escape, ENDINGS)) + ")")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one file; a line of summary.csv but for the last two fields.

    Attributes:
        path: The file, or the folder of a DICOM series, relative to the archive.
        mask: The mask's file, relative to the output folder; None where there is none.
        slices: How many slices it holds.
        area_px: Area of the tumour in all slices, in pixels.
        area_mm2: The same in mm², where the spacing is known.
        volume_mm3: What the tumour fills of a volume, in mm³, where it is known.
        confidence: Mean probability inside the mask; None where it is empty.
        warnings: What is unlike the training data, sentences.
        model_version: Of the registry.
        model_digest: SHA-256 of the model file.
        threshold: Probability from which a pixel is tumour.
        error: Why there is no mask, a sentence.
        source: Number of files, their bytes and the last change, to notice another content.
        written: SHA-256 of the mask as it was written; None where there is none.
    """

    path: str
    mask: str | None = None
    slices: int | None = None
    area_px: int | None = None
    area_mm2: float | None = None
    volume_mm3: float | None = None
    confidence: float | None = None
    warnings: str = ""
    model_version: str
    model_digest: str
    threshold: float
    error: str | None = None
    source: str
    written: str | None = None


def take(output: Path) -> tuple[TextIO, dict[str, Row]]:
    """Takes the output folder for one run, until the file that is returned is closed.

    Returns:
        The lock, and the rows of earlier runs by path.

    Raises:
        InputError: The folder holds something else or is in use.
        OSError: It cannot be written.
    """
    record = output / RECORD
    if not record.is_dir() and output.exists() and any(output.iterdir()):
        raise InputError(
            f"{output}: holds files that this command did not write; name a new folder"
        )
    record.mkdir(parents=True, exist_ok=True)
    lock = (record / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(f"{output}: another run writes there; wait for its end") from None
    (output / SUMMARY).unlink(missing_ok=True)
    return lock, _gathered(record)


def summarise(output: Path, rows: Iterable[Row]) -> Path:
    """Writes summary.csv, and removes what killed processes left half-written."""
    for parent, _, names in os.walk(output):
        for name in filter(_UNFINISHED.fullmatch, names):
            Path(parent, name).unlink(missing_ok=True)
    columns = [name for name in Row.__annotations__ if name not in ("source", "written")]
    path = output / SUMMARY
    with (
        atomic_path(path) as temporary,
        # Names of files need not be text.
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return path


def read(record: Path) -> tuple[Counter[str], dict[str, Row]]:
    """How often each file was begun, and the rows of those that were done, by path."""
    begun, done = Counter[str](), dict[str, Row]()
    for line in record.read_text().splitlines() if record.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:  # empty, or cut off when its writer was killed
            continue
        if "begun" in values:
            begun[values["begun"]] += 1
        else:
            done[values["path"]] = Row(**values)
    return begun, done


def _gathered(record: Path) -> dict[str, Row]:
    """The rows of earlier runs, by path."""
    rows: dict[str, Row] = {}
    for part in (record / DONE, *_parts(record)):
        rows |= read(part)[1]
    return rows


def keep(output: Path, rows: Iterable[Row]) -> None:
    """Brings what counts of earlier runs into one file, and forgets the rest.

    A row of a file that is no longer there would call it done when it comes back, though another
    file may have taken its mask's name meanwhile.
    """
    record = output / RECORD
    with atomic_path(record / DONE) as temporary:
        temporary.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    for part in _parts(record):
        part.unlink()


def _parts(record: Path) -> list[Path]:
    return sorted(record.glob("[0-9]*.jsonl"))
