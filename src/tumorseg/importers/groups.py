"""Patients from a CSV file, which count more than those that a source names itself."""

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tumorseg.core.errors import InputError
from tumorseg.data.coco import SPLITS
from tumorseg.imaging.display import AXES
from tumorseg.importers.reading import PICTURES, Given, Record

# As validate's usual name_pattern finds them, without identifiers that are no numbers of slices.
NUMBER = re.compile(r"\d{1,15}(?!\d)")
Key = str | int  # slice number, name without suffix, or split/name


def give(file: Path, records: Sequence[Record]) -> Given:
    """Looks up the patient of each slice, by its number or its file name.

    Args:
        file: CSV with a line of column names, then slice number or file name, and patient. Names
            may go without suffix and folder; a number is that which begins the file's name.
        records: With the names that the source has.

    Raises:
        InputError: The file is no such table, gives a slice two patients, or names no slice.
    """
    rows = read_rows(file)
    groups, without, used = [], [], set()
    changed = 0
    for record in records:
        found = _keys(record) & rows.keys()
        used |= found
        patients = {patient for key in found for patient in rows[key]}
        if len(patients) > 1:
            raise InputError(
                f"{file}: gives {record.name} the patients {', '.join(sorted(patients))}; keep one"
            )
        patient = next(iter(patients), record.group)
        changed += record.group not in (None, patient)
        groups.append(patient)
        if not patients:
            without.append(record.name)
    if not used:
        raise InputError(
            f"{file}: none of its lines names a slice; begin them with numbers or names of the "
            f"files, such as {records[0].name}"
        )
    return Given(file, groups, without, len(rows) - len(used), changed)


def read_rows(file: Path) -> dict[Key, set[str]]:
    """The patients by what identifies a slice.

    Raises:
        InputError: The file cannot be read, or is no table of two columns.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            table = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file}: cannot be read ({reason}); save it as CSV in UTF-8") from None
    wrong = next((row for row in table if len(row) != 2 or not all(row)), None)
    if wrong is not None or len(table) < 2 or NUMBER.match(table[0][0]):
        has = f"has the line {','.join(wrong)!r}" if wrong else "lacks one of these"
        raise InputError(
            f"{file}: needs a line of two column names, then lines of slice number or file name, "
            f"comma, patient, and {has}"
        )
    rows: dict[Key, set[str]] = defaultdict(set)
    for name, patient in table[1:]:
        rows[_key(name)].add(patient)
    return rows


def _key(name: str) -> Key:
    if NUMBER.fullmatch(name):
        return int(name)
    path = PurePosixPath(name.replace("\\", "/"))
    stem = path.name
    for suffix in (".gz", ".nii", *PICTURES):
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
    return f"{path.parent.name}/{stem}" if path.parent.name in SPLITS else stem


def _keys(record: Record) -> set[Key]:
    """All that a row may call a slice."""
    stem = PurePosixPath(record.name).stem
    keys: set[Key] = {stem, f"{record.split}/{stem}"}
    keys.add(re.sub(rf"_({'|'.join(AXES)})_\d+$", "", stem))  # the volume
    if number := NUMBER.match(stem):
        keys.add(int(number[0]))
    return keys
