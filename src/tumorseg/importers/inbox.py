"""The inbox: folders of newly labelled data, and what of each may join the data set.

The test split is frozen, so that champions stay comparable: nothing joins it, and nothing joins
the other two that would let a network see a test slice, or its neighbour, in training.
"""

import hashlib
import itertools
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tumorseg.core.errors import InputError
from tumorseg.core.params import RetrainParams, SplitParams, ValidateParams
from tumorseg.data import coco
from tumorseg.data.leakage import find_pairs, linked_elsewhere, neighbours_elsewhere
from tumorseg.data.manifest import build_manifest
from tumorseg.data.splits import find_groups

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
}


@dataclass(frozen=True)
class Refusal:
    """Why something stays outside: its name in the batch, a key of `REASONS`, a sentence."""

    name: str
    reason: str
    why: str


@dataclass
class Unpacked:
    """A batch in the project's layout, all of it under `train/`.

    Attributes:
        kind: The importer's name; "unknown" where none fits.
        slices: How many slices the batch holds, those counted that cannot be read.
        refused: What could not be read or has no labels.
    """

    kind: str
    slices: int = 0
    refused: list[Refusal] = field(default_factory=list)


def batches(inbox: Path, settle_seconds: float) -> tuple[list[Path], list[Path]]:
    """The sub-folders of an inbox: those at rest, and those that may still be being copied.

    A batch is at rest once nothing in it has changed for `settle_seconds`. Hidden names are never
    taken: who copies under `.NAME` and renames at the end need not wait.
    """
    if not inbox.is_dir():
        return [], []
    folders = sorted(
        path
        for path in inbox.iterdir()
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
    digest = hashlib.sha256(batch.name.encode("utf-8", "surrogateescape"))
    for path in sorted(batch.rglob("*")):
        status = os.lstat(path)
        size = None if path.is_dir() else (status.st_size, status.st_mtime_ns)
        told = f"{path.relative_to(batch)} {size}\n"
        digest.update(told.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def unpack(batch: Path, folder: Path) -> Unpacked:
    """Writes a batch in the project's layout, whatever its format; all slices under `train/`.

    Args:
        batch: In a format that `tumorseg.importers` reads, or with some of train/, valid/, test/.
        folder: Is made.

    Raises:
        InputError: The batch cannot be imported at all.
    """
    from tumorseg.importers import IMPORTERS, Options, detect
    from tumorseg.importers.coco_folder import coco_files, place_of, read_document
    from tumorseg.importers.reading import refuse_links_out, visible_files
    from tumorseg.importers.writer import save

    refuse_links_out(batch)
    # Sides are not the batch's to choose. Each JSON has category ids of its own.
    sides = [batch / split for split in coco.SPLITS if (batch / split / coco.ANNOTATIONS).exists()]
    result = Unpacked("coco" if sides else detect(batch))
    categories: dict[str, dict[str, Any]] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    numbers = itertools.count(1)
    (folder / "train").mkdir(parents=True)
    listed: set[Path] = set()
    taken: set[str] = set()
    for root in sides or [batch]:
        source = IMPORTERS[result.kind].read(root, Options(lenient=result.kind == "masks"))
        result.slices += len(source.records) + len(source.skipped)
        for path, why in source.skipped.items():
            result.refused.append(Refusal(_within(path, batch), "unreadable", why))
            listed.add(path)
        for each in source.categories:
            name = str(each.get("name"))
            categories.setdefault(name, dict(each) | {"id": len(categories) + 1, "name": name})
        names = {str(each.get("id")): str(each.get("name")) for each in source.categories}
        ids = {str(each.get("name")): each.get("id") for each in source.categories}
        for record in source.records:
            if record.name.lower() in taken:
                why = "another file of the batch has its name"
                result.refused.append(Refusal(f"{root.name}/{record.name}", "name", why))
                continue
            try:
                entry, own = save(record, folder / "train", 0, ids, numbers)
            except InputError as error:
                result.refused.append(Refusal(record.name, "unreadable", str(error)))
                continue
            taken.add(record.name.lower())
            images.append(entry | {"id": len(images) + 1})
            for annotation in own:
                label = names.get(str(annotation.get("category_id")), "unknown")
                known = categories.setdefault(label, {"id": len(categories) + 1, "name": label})
                place = {"image_id": len(images), "category_id": known["id"]}
                annotations.append(annotation | {"id": len(annotations) + 1} | place)
        if result.kind == "coco":
            for path in coco_files(root):
                names_in = [str(entry["file_name"]) for entry in read_document(path)["images"]]
                listed |= {place_of(root, name) for name in names_in}
    if result.kind == "coco":
        pictures = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
        for path in visible_files(batch):
            if path.suffix.lower() in pictures and path not in listed:
                why = "has no labels: no JSON file lists it"
                result.refused.append(Refusal(_within(path, batch), "unreadable", why))
                result.slices += 1
    if not result.slices:
        raise InputError("it holds no slice")
    document = {"categories": list(categories.values()), "images": images}
    document["annotations"] = annotations
    empty: dict[str, Any] = {"images": [], "annotations": []}
    for split in coco.SPLITS:
        (folder / split).mkdir(exist_ok=True)
        written = document if split == "train" else empty
        (folder / split / coco.ANNOTATIONS).write_text(json.dumps(written), encoding="utf-8")
    return result


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def judge(
    unpacked: Path,
    data: Path,
    scratch: Path,
    validate: ValidateParams,
    split: SplitParams,
    retrain: RetrainParams,
) -> pd.DataFrame:
    """Decides about each slice of a batch, by the measures of the data audit.

    Args:
        unpacked: From `unpack`.
        data: The data set.
        scratch: For thumbnails.
        validate: What is acceptable.
        split: How long a chain of neighbours may be.
        retrain: What is set aside, and the share for valid.

    Returns:
        A row a slice: `name`, `reason` (of `REASONS`, None where it joins), `why`, and `side`
        (train or valid, None where it stays outside).
    """
    present = build_manifest(data, validate, scratch / "present.npy")
    new = build_manifest(unpacked, validate, scratch / "new.npy")
    names = new["path"].str.removeprefix("train/")
    new = new.assign(path=f"{NEW}/" + names, split=NEW, thumbnail=new["thumbnail"] + len(present))
    table = pd.concat([present, new], ignore_index=True)
    small = [np.load(scratch / f"{each}.npy", mmap_mode="r") for each in ("present", "new")]
    np.save(scratch / "all.npy", np.concatenate(small))
    pairs = find_pairs(table, scratch / "all.npy", validate.near_duplicate)

    def tied(side: str) -> dict[str, pd.Series]:
        """What ties each slice to a split, of all slices, by reason."""
        groups = set(table.loc[table["split"] == side, "group"].dropna())
        found = {
            "duplicate": linked_elsewhere(table, pairs, "exact", (side,)),
            "near_duplicate": linked_elsewhere(table, pairs, "near", (side,)),
            "neighbour": neighbours_elsewhere(table, (side,)),
            "patient": table["group"].isin(groups).to_numpy(),
        }
        return {name: pd.Series(ties, table.index) for name, ties in found.items()}

    verdicts = pd.DataFrame({"name": names.to_numpy(), "reason": None, "why": None}, dtype=object)
    verdicts.index = table.index[len(present) :]
    rows = table.loc[verdicts.index]

    def refuse(which: pd.Series, reason: str, why: Any = None) -> None:
        chosen = which.loc[verdicts.index].astype(bool) & verdicts["reason"].isna()
        verdicts.loc[chosen, "reason"] = reason
        verdicts.loc[chosen, "why"] = REASONS[reason] if why is None else why[chosen]

    refuse(table["problem"].notna(), "unusable", rows["why"])
    for name, ties in tied("test").items():
        refuse(ties, f"test_{name}")
    twins = set(pairs.loc[pairs["kind"] == "exact", "right"])  # of an earlier file, here or there
    refuse(table["path"].isin(twins), "duplicate")
    files = present["path"].str.split("/", n=1).str[1].str.lower()
    refuse(table["path"].str.removeprefix(f"{NEW}/").str.lower().isin(set(files)), "name")
    failed = rows.apply(_failed, axis=1, result_type="reduce", args=(validate, retrain))
    refuse(failed.reindex(table.index, fill_value="") != "", "finding", failed)

    joins = table.loc[verdicts.index[verdicts["reason"].isna()]]
    near = {side: np.logical_or.reduce([*tied(side).values()]) for side in ("train", "valid")}
    links = pairs[pairs["kind"] != "exact"]
    blocks = (split.shortest_block, split.longest_block)
    verdicts["side"] = None
    groups = find_groups(joins, links, *blocks) if len(joins) else np.empty(0, np.intp)
    for _, group in joins.groupby(groups):
        if near["train"][group.index].any():
            side = "train"
        elif near["valid"][group.index].any():
            side = "valid"
        else:
            side = _draw(group, retrain.valid_share)
        verdicts.loc[group.index, "side"] = side
    return verdicts.reset_index(drop=True)


def _draw(group: pd.DataFrame, share: float) -> str:
    """The side of a group by its hash: what comes later of the same patient gets the same."""
    key = min(group["group"].fillna(group["sha256"]))
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return "valid" if number < share * 2**64 else "train"


def _failed(row: pd.Series, validate: ValidateParams, retrain: RetrainParams) -> str:
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
