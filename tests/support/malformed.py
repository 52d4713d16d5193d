"""The corpus of malformed and odd inputs, and what validate makes of a folder."""

import os
from pathlib import Path

import pandas as pd

from tests.support.spoiling import Case, Outcome, spoilt, spoilt_folder
from tests.support.spoilt_entries import ENTRIES, LABELS
from tests.support.spoilt_folders import FOLDERS
from tests.support.spoilt_pictures import PICTURES
from tumorseg.core.errors import InputError
from tumorseg.core.params import ValidateParams
from tumorseg.data import coco
from tumorseg.data.leakage import find_pairs, mark_leaks
from tumorseg.data.manifest import build_manifest

# What needs another user than root is left out for root.
IMAGES = [
    case for case in PICTURES + ENTRIES + LABELS if case.name != "no permission" or os.geteuid()
]
CASES = IMAGES + FOLDERS
# What a picture has only in comparison with the few others here.
RELATIVE = {"intensity_outlier", "size_outlier", "blank"}


def prepare(data: Path, case: Case) -> Outcome:
    """Writes the case's folder; returns what must come of it."""
    return spoilt_folder(data, case) if case in FOLDERS else spoilt(data, [case])


def examine(data: Path, params: ValidateParams, scratch: Path) -> pd.DataFrame:
    """The manifest of a folder with its leaks marked, as validate makes it."""
    small = scratch / "thumbnails.npy"
    table = build_manifest(data, params, small)
    return mark_leaks(table, find_pairs(table, small, params.near_duplicate), coco.SPLITS)


def in_words(data: Path, params: ValidateParams, scratch: Path) -> str:
    """What comes of a folder: "error: …", "finding: …", "oddity: …" or "usable"."""
    try:
        table = examine(data, params, scratch)
    except InputError as error:
        return f"error: {str(error).replace(f'{data}/', '').replace(str(data), 'data')}"
    bad = table.dropna(subset="problem").drop_duplicates("problem")
    found = [f"{row.problem} ({row.why})" for row in bad.itertuples()]
    if found:
        return f"finding: {'; '.join(found)}"
    odd = {name for names in table["oddities"] for name in names.split(",")} - RELATIVE - {""}
    return f"oddity: {', '.join(sorted(odd))}" if odd else "usable"
