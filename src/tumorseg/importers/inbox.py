"""The inbox: folders of newly labelled data, and what of each may join the data set.

The test split is frozen, so that champions stay comparable: nothing joins it, and nothing joins
the other two that would let a network see a test slice, or its neighbour, in training.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tumorseg.core.errors import InputError
from tumorseg.core.params import RetrainParams, SplitParams, ValidateParams
from tumorseg.data.leakage import find_pairs, linked_elsewhere, neighbours_elsewhere
from tumorseg.data.manifest import build_manifest
from tumorseg.data.splits import find_groups, grouped, resolve
from tumorseg.importers import detect, read, write

NEW = "new"  # the split of a slice that has no side yet
REASONS = {
    "folder": "the folder cannot be imported",
    "unreadable": "cannot be read, or has no labels",
    "unusable": "the picture or its labels cannot be used",
    "test_duplicate": "is a test slice, byte for byte",
    "test_near_duplicate": "looks like a test slice (validate.near_duplicate)",
    "test_neighbour": "lies beside a test slice, by its number",
    "test_patient": "is of a patient of the test split",
    "duplicate": "is in the data set already, byte for byte",
    "name": "the data set has a file of that name",
    "finding": "fails a check that retrain.quarantine_on names",
    "no_patient": "names no patient (`group` in the JSON), and the data set is split by them",
}

GUESSED = (
    "split.method is guessed, which deals all slices anew when data come in, so that the test "
    "split would not stay the same and no champion could be compared: set split.method: official "
    "in params.yaml to take in what lies in the inbox"
)


def batches(inbox: Path, settle_seconds: float) -> tuple[list[Path], list[Path]]:
    """The sub-folders of an inbox: those at rest, and those that may still be being copied.

    A batch is at rest once nothing in it has changed for `settle_seconds`. Hidden names are never
    taken: who copies under `.NAME` and renames at the end need not wait.
    """
    folders = sorted(
        path
        for path in (inbox.iterdir() if inbox.is_dir() else ())
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    )
    now = time.time()
    quiet = [folder for folder in folders if now - _last_change(folder) >= settle_seconds]
    return quiet, [folder for folder in folders if folder not in quiet]


def _last_change(folder: Path) -> float:
    # The change of the inode, too: copying tools set the other to what it was at the source.
    try:
        found = [os.lstat(path) for path in (folder, *folder.rglob("*"))]
    except FileNotFoundError:  # renamed or removed between the two
        return time.time()
    return max(max(status.st_mtime, status.st_ctime) for status in found)


def fingerprint(batch: Path) -> str:
    """A digest of the names, sizes and times in a batch; another one if anything was added."""
    digest = hashlib.sha256(os.fsencode(batch.name))
    for path in sorted(batch.rglob("*")):
        status = os.lstat(path)
        size = None if path.is_dir() else (status.st_size, status.st_mtime_ns)
        digest.update(os.fsencode(f"{path.relative_to(batch)} {size}\n"))
    return digest.hexdigest()


def examine(
    batch: Path,
    folder: Path,
    validate: ValidateParams,
    split: SplitParams,
    retrain: RetrainParams,
    data: Path,
) -> tuple[str, pd.DataFrame]:
    """Writes a batch to `folder/unpacked/train` and decides about each slice.

    Args:
        batch: In a format that `tumorseg.importers` reads, or with some of train/, valid/, test/,
            whose splits are ignored.
        folder: For what is unpacked, and for thumbnails.
        validate: What is acceptable.
        split: How the data set is split, and how long a chain of neighbours may be.
        retrain: Which checks quarantine a slice, and the share for valid.
        data: The data set.

    Returns:
        The importer's name ("unknown" where none fits), and a row a slice: `name`, `reason` (of
        `REASONS`, None where it joins), `why`, and `side` (train or valid, None where it stays
        outside).

    Raises:
        InputError: The data set is divided anew each time, so that its test split is not frozen.
    """
    if split.method == "guessed":
        raise InputError(GUESSED)
    rows: list[dict[str, str | None]] = []
    verdicts = pd.DataFrame(columns=["name", "reason", "why", "side"], dtype=object)
    kind, unpacked = "unknown", folder / "unpacked"
    try:
        kind = detect(batch)
        source = read(batch, kind)
    except InputError as error:
        rows.append({"name": ".", "reason": "folder", "why": str(error), "side": None})
    else:
        unread = write(source, ["train"] * len(source.records), unpacked)
        skipped = {os.path.relpath(path, batch): why for path, why in source.skipped.items()}
        for name, why in (skipped | unread).items():
            rows.append({"name": name, "reason": "unreadable", "why": why, "side": None})
        if len(unread) < len(source.records):
            verdicts = _decide(unpacked, data, folder, validate, split, retrain)
    return kind, pd.concat([verdicts, pd.DataFrame(rows, columns=verdicts.columns, dtype=object)])


def _decide(
    unpacked: Path,
    data: Path,
    scratch: Path,
    validate: ValidateParams,
    split: SplitParams,
    retrain: RetrainParams,
) -> pd.DataFrame:
    """The rows of the slices that could be read, by the measures of the data audit."""
    present = build_manifest(data, validate, scratch / "present.npy")
    new = build_manifest(unpacked, validate, scratch / "new.npy")
    names = new["path"].str.removeprefix("train/")
    new = new.assign(path=f"{NEW}/" + names, split=NEW, thumbnail=new["thumbnail"] + len(present))
    table = pd.concat([present, new], ignore_index=True)
    small = [np.load(scratch / f"{each}.npy", mmap_mode="r") for each in ("present", "new")]
    np.save(scratch / "all.npy", np.concatenate(small))
    pairs = find_pairs(table, scratch / "all.npy", validate.near_duplicate)
    blocks = split.shortest_block, split.longest_block
    usable = present[present["problem"].isna()]
    by_patient = resolve(split.method, usable) == "patient"
    if by_patient:  # as stage split deals them
        table.loc[usable.index, "split"] = grouped(usable, pairs, *blocks, split.seed)["split"]
    rows = table.iloc[len(present) :]

    def tied(name: str) -> dict[str, NDArray[np.bool_]]:
        """What ties each new slice to a split, by reason; shape (new slices,)."""
        groups = table.loc[table["split"] == name, "group"].dropna()
        found = {
            "duplicate": linked_elsewhere(table, pairs, "exact", (name,)),
            "near_duplicate": linked_elsewhere(table, pairs, "near", (name,)),
            "neighbour": neighbours_elsewhere(table, (name,)),
            "patient": table["group"].isin(groups).to_numpy(),
        }
        return {reason: ties[len(present) :] for reason, ties in found.items()}

    # An equal file counts as a copy of the first, here or in the data set.
    copies = pairs.loc[pairs["kind"] == "exact", "right"]
    files = present["path"].str.split("/", n=1).str[1].str.lower()
    checks = {f"test_{name}": ties for name, ties in tied("test").items()}
    checks["duplicate"] = rows["path"].isin(copies).to_numpy()
    checks["name"] = names.str.lower().isin(files).to_numpy()
    checks["no_patient"] = by_patient & rows["group"].isna().to_numpy()
    verdicts = pd.DataFrame(
        {"name": names, "reason": None, "why": None, "side": None}, dtype=object
    )
    verdicts.index = rows.index
    for index, (place, row) in zip(rows.index, enumerate(rows.to_dict("records")), strict=True):
        failed = _failed(row, validate, retrain)
        if not pd.isna(row["problem"]):
            verdicts.loc[index, ["reason", "why"]] = "unusable", row["why"]
        elif reason := next((name for name, found in checks.items() if found[place]), None):
            verdicts.loc[index, ["reason", "why"]] = reason, REASONS[reason]
        elif failed:
            verdicts.loc[index, ["reason", "why"]] = "finding", failed

    joins = rows[verdicts["reason"].isna()]
    if joins.empty:
        return verdicts.reset_index(drop=True)
    near = {side: pd.DataFrame(tied(side), rows.index) for side in ("train", "valid")}
    links = pairs[pairs["kind"] != "exact"]
    for _, group in joins.groupby(find_groups(joins, links, *blocks)):
        # A patient stays whole, whatever else it looks like.
        patient = [side for side, ties in near.items() if ties.loc[group.index, "patient"].any()]
        near_to = [side for side, ties in near.items() if ties.loc[group.index].any(axis=None)]
        beside = patient + near_to
        # Else by a hash of the group: what comes later of the same patient gets the same side.
        key = min(group["group"].fillna(group["sha256"]))
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        drawn = "valid" if number < retrain.valid_share * 2**64 else "train"
        verdicts.loc[group.index, "side"] = beside[0] if beside else drawn
    return verdicts.reset_index(drop=True)


def _failed(row: Any, validate: ValidateParams, retrain: RetrainParams) -> str:
    """The checks of retrain.quarantine_on that a slice fails, as one text."""
    found = set(str(row["oddities"]).split(","))
    sides = (row["width"], row["height"])
    if min(sides) < validate.min_side or max(sides) > validate.max_side:
        found.add("size")
    if row["tumour_fraction"] > validate.max_tumour_fraction:
        found.add("tumour_fraction")
    if row["mode"] not in ("L", "RGB"):
        found.add("unusual_mode")
    return ", ".join(sorted(found & set(retrain.quarantine_on)))
