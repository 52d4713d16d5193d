"""A batch's way from the inbox into the data set: staged beside it, swapped in, recorded, removed.

Everything is made in `.data.intake/` next to `data/`. A take-in that was cut off is undone by
`recover` as long as data.dvc was not committed, and only its remains are cleared away afterwards;
the batch leaves the inbox last.
"""

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tumorseg.core import git
from tumorseg.core.environment import STATE
from tumorseg.core.errors import InputError, StageError
from tumorseg.core.files import remove_folder, write_json
from tumorseg.core.params import RetrainParams, SplitParams, ValidateParams, load_params
from tumorseg.data import coco
from tumorseg.data.dataset import dvc, refuse_to_lose
from tumorseg.importers.inbox import batches, examine, fingerprint

DATA = Path("data")
# What was taken in since the last report: a run that is killed leaves it to the next one's.
TAKEN = STATE / "retrain" / "taken.json"


@dataclass(frozen=True)
class Taken:
    """What became of one batch; it names no file and no patient, but for `folder`.

    Attributes:
        batch: Eight digits of its fingerprint; reports call it so.
        folder: Its name in the inbox; empty in reports.
        fingerprint: As it was read.
        kind: The importer's name.
        slices: How many it held.
        train: How many joined the training split.
        valid: How many joined the validation split.
        refused: Key of `inbox.REASONS` → number of slices.
        quarantine: The folder of the refused in the quarantine; None where there are none.
        before: md5 of the data version before.
        after: md5 of the data version after; the same where nothing joined.
    """

    batch: str
    folder: str
    fingerprint: str
    kind: str
    slices: int
    train: int
    valid: int
    refused: dict[str, int]
    quarantine: str | None
    before: str
    after: str


def work(data: Path = DATA) -> Path:
    """Where a take-in is staged: beside `data`, so that it can be renamed into place."""
    return data.with_name(f".{data.name}.intake")


def taken_in(path: Path = TAKEN) -> list[Taken]:
    """What was taken in since `forget_taken`, also by runs that failed afterwards."""
    return [Taken(**each) for each in json.loads(path.read_text())] if path.exists() else []


def forget_taken(path: Path = TAKEN) -> None:
    """Begins a new list, once a report holds the old one."""
    path.unlink(missing_ok=True)


def version(data: Path = DATA) -> str:
    """The md5 that data.dvc records."""
    record: Any = yaml.safe_load(data.with_name(f"{data.name}.dvc").read_text())
    return str(record["outs"][0]["md5"])


def take_in(
    batch: Path,
    validate: ValidateParams,
    split: SplitParams,
    retrain: RetrainParams,
    data: Path = DATA,
) -> Taken:
    """Makes what may join of a batch a new data version, and moves the rest to the quarantine.

    Raises:
        InputError: data/ or data.dvc holds changes that are not recorded.
        StageError: The batch changed while it was read, or the version could not be recorded; data/
            and the inbox are as they were.
    """
    git.refuse_changed(f"{data.name}.dvc")
    refuse_to_lose(data)
    recover(retrain, data)  # what an earlier try left
    place = work(data)
    place.mkdir(parents=True)
    try:
        mark, stamp = fingerprint(batch), time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        kind, verdicts = examine(batch, place, validate, split, retrain, data)
        refused = verdicts[verdicts["reason"].notna()]
        joins = verdicts[verdicts["reason"].isna()]
        if len(joins):
            merge(data, place, joins)
        if len(refused):
            quarantine(place, batch.name, refused)
        reasons, splits = Counter(refused["reason"]), Counter(joins["side"])
        taken = Taken(
            batch=mark[:8],
            folder=batch.name,
            fingerprint=mark,
            kind=kind,
            slices=len(verdicts) - reasons["folder"],
            train=splits["train"],
            valid=splits["valid"],
            refused=dict(reasons),
            quarantine=f"{stamp}-{mark[:8]}" if len(refused) else None,
            before=version(data),
            after=version(data),
        )
        if fingerprint(batch) != mark:
            raise StageError("a batch changed while it was read; it stays for the next time")
        # From here on `recover` knows what was begun.
        write_json(place / "taken.json", asdict(taken))
        if taken.train or taken.valid:
            data.rename(place / "before")
            (place / "data").rename(data)
            dvc("add", data.name)
            taken = replace(taken, after=version(data))
            write_json(place / "taken.json", asdict(taken))
            added = f"{taken.train} slices for training, {taken.valid} for validation"
            git.commit([f"{data.name}.dvc"], f"New data: batch {taken.batch}, {added}")
    except Exception as error:
        recover(retrain, data)
        if not isinstance(error, InputError | StageError):
            raise
        print(error)  # the words of DVC or git
        raise StageError(
            "no new data version, since it could not be recorded; data/, the inbox and the "
            "champion are as they were"
        ) from None
    recover(retrain, data)
    return taken


def merge(data: Path, place: Path, joins: pd.DataFrame) -> None:
    """Builds the next data set: old files as links, new images, and two JSON files written anew."""
    merged = place / "data"
    shutil.copytree(data, merged, symlinks=True, copy_function=_link)
    for side, rows in joins.groupby("side"):
        document = coco.Document(coco.read_document(merged / str(side) / coco.ANNOTATIONS))
        new = {"taken_in": True}
        _move(place / "unpacked" / "train", merged / str(side), set(rows["name"]), document, new)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or another one
        shutil.copy2(source, target)


def quarantine(place: Path, batch: str, refused: pd.DataFrame) -> None:
    """Builds the quarantine's folder: a COCO folder, and a CSV file with the reasons."""
    refused_to, unpacked = place / "quarantine", place / "unpacked" / "train"
    refused_to.mkdir()
    table = refused[["name", "reason", "why"]].map(coco.printable)
    table.insert(0, "batch", coco.printable(batch))
    table.to_csv(refused_to / "quarantine.csv", index=False)
    names = {name for name in refused["name"] if (unpacked / name).is_file()}
    if names:
        _move(unpacked, refused_to, names, coco.Document())


def _move(
    source: Path,
    target: Path,
    names: set[str],
    document: coco.Document,
    more: dict[str, Any] | None = None,
) -> None:
    """Moves images of a COCO folder to another, whose document is given, with their labels.

    Their entries get what is in `more`.
    """
    for image in coco.read_split(source):
        if image.file_name in names:
            document.add(
                image.entry | (more or {}), zip(image.labels, image.annotations, strict=True)
            )
            (source / image.file_name).rename(target / image.file_name)
    document.save(target)


def recover(retrain: RetrainParams, data: Path = DATA) -> None:
    """Brings a take-in to its end, or undoes it where its version was not committed.

    That is the end of each take-in, and the beginning of each retraining.
    """
    place = work(data)
    if (place / "taken.json").exists():
        taken = Taken(**json.loads((place / "taken.json").read_text()))
        committed = git.committed(f"{data.name}.dvc") or ""
        joined = bool(taken.train or taken.valid)
        if not joined or (taken.after != taken.before and taken.after in committed):
            _finish(taken, retrain, place)
        elif (place / "before").exists():
            git.git("checkout", "--quiet", "HEAD", "--", f"{data.name}.dvc")
            remove_folder(data)
            (place / "before").rename(data)
    remove_folder(place)


def _finish(taken: Taken, retrain: RetrainParams, place: Path) -> None:
    """Notes what was taken in, moves the refused to the quarantine, and removes the batch."""
    others = [each for each in taken_in() if each.fingerprint != taken.fingerprint]
    write_json(TAKEN, [asdict(replace(each, folder="")) for each in (*others, taken)])
    batch = Path(retrain.inbox, taken.folder)
    gone = batch.with_name(f".taken-{taken.batch}")  # hidden: nothing looks at it any more
    if batch.exists() and fingerprint(batch) == taken.fingerprint:
        batch.rename(gone)  # what came into it since stays where it is
    complete = Path(retrain.quarantine, taken.quarantine or "")
    if taken.quarantine and not complete.exists():
        growing = complete.with_name(f".{complete.name}")
        remove_folder(growing)
        shutil.copytree(place / "quarantine", growing, symlinks=True)
        # What could not be read is in no COCO folder: all of the batch is kept.
        if {"folder", "unreadable"} & taken.refused.keys() and gone.exists():
            shutil.copytree(gone, growing / "original", symlinks=True)
        growing.rename(complete)
    try:
        remove_folder(gone)
    except PermissionError as error:
        print(f"{gone}: is taken in but cannot be removed ({error.strerror}); remove it by hand")


def rehearse(stages: Sequence[str], data: Path = DATA) -> str:
    """Says what would come in, what would be quarantined and why, and which stages would run.

    Batches are examined one by one against the data set as it is, in a temporary folder.

    Args:
        stages: In their order.
        data: The data set.
    """
    params = load_params(RetrainParams)
    ready, waiting = batches(Path(params.inbox), params.settle_seconds)
    lines = [
        f"{folder}: left alone, changed less than retrain.settle_seconds ago" for folder in waiting
    ]
    comes = False
    try:
        if ready:
            git.refuse_changed(f"{data.name}.dvc")
        refuse_to_lose(data)
        for batch in ready:
            with tempfile.TemporaryDirectory(dir=STATE) as scratch:
                sections = load_params(ValidateParams), load_params(SplitParams), params
                kind, verdicts = examine(batch, Path(scratch), *sections, data)
            sides = verdicts["side"].value_counts()
            refused = verdicts[verdicts["reason"].notna()]
            comes = comes or len(refused) < len(verdicts)
            lines.append(
                f"{batch} ({kind}, {len(verdicts)} slices): {sides.get('train', 0)} would go to "
                f"train, {sides.get('valid', 0)} to valid, {len(refused)} to {params.quarantine}/"
            )
            reasons = zip(refused["name"], refused["why"], strict=True)
            lines += [f"  {name}: {why}" for name, why in reasons]
    except InputError as error:
        lines.append(f"nothing would come in or run: {error}")
    if not (ready or waiting):
        lines.append(f"{params.inbox}/: nothing there")
    changed: dict[str, Any] = json.loads(dvc("status", "--json").strip() or "{}")
    stale = [name for name in stages if any(key.split("@")[0] == name for key in changed)]
    lines.append(f"out of date by `dvc status`: {', '.join(stale) or 'no stage'}")
    if comes or stale:
        lines.append("and what follows where its input changes")
    return "\n".join(lines)
