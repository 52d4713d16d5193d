"""A batch's way into the data set: staged beside it, then swapped in, recorded, and only then gone.

Everything is made in `.data.intake/` next to `data/`. Its journal, written last, decides: without
it a take-in that was cut off never happened, with it `finish` brings it to its end, however often
it was cut off in between.
"""

import json
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tumorseg.core import git as versions
from tumorseg.core.environment import STATE
from tumorseg.core.errors import InputError, StageError
from tumorseg.core.files import (
    FULL,
    move_folder,
    remove_folder,
    says_full,
    told_if_full,
    write_json,
)
from tumorseg.core.params import RetrainParams, SplitParams, ValidateParams
from tumorseg.data.dataset import dvc, refuse_to_lose
from tumorseg.importers.inbox import Refusal, Unpacked, fingerprint, judge, unpack
from tumorseg.importers.merging import merge, set_aside

DATA = Path("data")
UNDO = "undo.json"  # the journal of a take-in that is being taken back
# What was taken in since the last report: a run that is killed leaves it to the next one's.
TAKEN = STATE / "retrain" / "taken.json"
UNTOUCHED = "data/, the inbox and the champion are as they were"
GROUPED = (
    "split.method is grouped, which deals all slices anew when data come in, so that the test "
    "split would not stay the same and no champion could be compared: set split.method: official "
    "in params.yaml to take in what lies in the inbox"
)


@dataclass(frozen=True)
class Taken:
    """What became of one batch; it names no file and no patient, but for `folder`.

    Attributes:
        batch: Eight digits of its fingerprint; reports call it so.
        folder: Its name in the inbox; only in the journal.
        fingerprint: As it was read.
        kind: The importer's name.
        slices: How many it held.
        train: How many joined the training split.
        valid: How many joined the validation split.
        refused: Key of `inbox.REASONS` → number of slices.
        quarantine: The folder of the refused in the quarantine; None where there are none.
        keep: Whether all of the batch goes there, since some of it could not be read.
        before: md5 of the data version before.
        after: md5 of the data version after; the same where nothing joined.
        time: When it was read, UTC.
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
    keep: bool
    before: str
    after: str
    time: str


def work(data: Path = DATA) -> Path:
    """Where a take-in is staged: beside `data`, so that it can be renamed into place."""
    return data.with_name(f".{data.name}.intake")


def taken_in(path: Path = TAKEN) -> list[Taken]:
    """What was taken in since `forget_taken`, also by runs that failed afterwards."""
    return [Taken(**each) for each in json.loads(path.read_text())] if path.exists() else []


def forget_taken(path: Path = TAKEN) -> None:
    """Begins a new list: a report has told it."""
    path.unlink(missing_ok=True)


def version(data: Path = DATA) -> str:
    """The md5 that data.dvc records."""
    record: Any = yaml.safe_load(data.with_name(f"{data.name}.dvc").read_text())
    return str(record["outs"][0]["md5"])


def examine(
    batch: Path,
    folder: Path,
    validate: ValidateParams,
    split: SplitParams,
    retrain: RetrainParams,
    data: Path = DATA,
) -> tuple[Unpacked, pd.DataFrame]:
    """Unpacks a batch into `folder` and decides about each slice; touches nothing else.

    Returns:
        What the batch holds, and the verdicts of `inbox.judge`, those about what could not be
        unpacked included.

    Raises:
        InputError: The data set is divided anew each time, so that its test split is not frozen.
    """
    if split.method == "grouped":
        raise InputError(GROUPED)
    try:
        unpacked = unpack(batch, folder / "unpacked")
    except InputError as error:
        shutil.rmtree(folder / "unpacked", ignore_errors=True)
        unpacked = Unpacked("unknown", 0, [Refusal(".", "folder", str(error))])
    verdicts = pd.DataFrame(columns=["name", "reason", "why", "side"], dtype=object)
    if unpacked.slices > len(unpacked.refused):
        verdicts = judge(folder / "unpacked", data, folder, validate, split, retrain)
    unread = [asdict(refusal) | {"side": None} for refusal in unpacked.refused]
    if unread:
        verdicts = pd.concat([verdicts, pd.DataFrame(unread, dtype=object)], ignore_index=True)
    return unpacked, verdicts


def stage(
    batch: Path,
    validate: ValidateParams,
    split: SplitParams,
    retrain: RetrainParams,
    data: Path = DATA,
) -> bool:
    """Prepares everything that a batch changes, without changing it; the journal comes last.

    Returns:
        Whether it is ready for `finish`; False where the batch changed while it was read.

    Raises:
        InputError: data/ or data.dvc holds changes that are not recorded.
        StageError: The disk is full.
    """
    place = work(data)
    with told_if_full(UNTOUCHED):
        tidy(data)
        versions.refuse_changed(f"{data.name}.dvc")
        refuse_to_lose(data)
    remove_folder(place)
    mark, now = fingerprint(batch), time.gmtime()
    try:
        with told_if_full(UNTOUCHED):
            place.mkdir(parents=True)
            unpacked, verdicts = examine(batch, place, validate, split, retrain, data)
            if fingerprint(batch) != mark:
                remove_folder(place)
                return False
            joins = verdicts[verdicts["reason"].isna()]
            refused = verdicts[verdicts["reason"].notna()]
            if len(joins):
                merge(data, place, joins)
            if len(refused):
                set_aside(place, batch.name, refused)
            sides = Counter(joins["side"])
            before = version(data)
            taken = Taken(
                batch=mark[:8],
                folder=batch.name,
                fingerprint=mark,
                kind=unpacked.kind,
                slices=unpacked.slices,
                train=sides["train"],
                valid=sides["valid"],
                refused={str(key): n for key, n in refused["reason"].value_counts().items()},
                quarantine=f"{time.strftime('%Y%m%dT%H%M%SZ', now)}-{mark[:8]}"
                if len(refused)
                else None,
                keep=bool(unpacked.refused),
                before=before,
                after=before,
                time=time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
            )
            shutil.copyfile(data.with_name(f"{data.name}.dvc"), place / "record")
            write_json(place / "journal.json", asdict(taken))
    except Exception:
        remove_folder(place)
        raise
    return True


def unfinished(data: Path = DATA) -> bool:
    """Whether a take-in was decided and not brought to its end."""
    return (work(data) / "journal.json").exists()


def finish(retrain: RetrainParams, data: Path = DATA) -> Taken:
    """Swaps the staged data set in, records it, and clears the batch away; may be repeated.

    Raises:
        StageError: The new version cannot be recorded; data/ is as before, the batch still there.
    """
    place = work(data)
    taken = Taken(**json.loads((place / "journal.json").read_text()))
    if taken.train or taken.valid:
        try:
            _record(taken, data)
        except (InputError, StageError, OSError) as error:
            if isinstance(error, InputError):
                print(error)  # DVC's own words
            _take_back(data)
            why = FULL if says_full(str(error)) else "it could not be recorded"
            raise StageError(f"no new data version, since {why}; {UNTOUCHED}") from None
        taken = Taken(**asdict(taken) | {"after": version(data)})
    remove_folder(_done(data))
    with told_if_full("the new data version is recorded"):
        _clear_away(taken, retrain, place)
        told = [each for each in taken_in() if each.fingerprint != taken.fingerprint]
        nameless = [asdict(each) | {"folder": ""} for each in (*told, taken)]
        write_json(TAKEN, nameless)
    place.rename(_done(data))
    tidy(data)
    return taken


def tidy(data: Path = DATA) -> None:
    """Removes what a take-in left that was cut off before it was decided, or after its end.

    One that was cut off while it was taken back is taken back.
    """
    remove_folder(_done(data))
    if (work(data) / UNDO).exists():
        _undo(data)
    elif not unfinished(data):
        remove_folder(work(data))


def _done(data: Path) -> Path:
    return data.with_name(f".{data.name}.done")


def _record(taken: Taken, data: Path) -> None:
    place, before = work(data), work(data) / "before"
    if (place / "data").exists():
        if data.exists():
            if before.exists():  # cut off between the renames, and data/ brought back by hand
                refuse_to_lose(data)
                shutil.rmtree(before)
            data.rename(before)
        (place / "data").rename(data)
    dvc("add", data.name)
    added = f"{taken.train} slices for training, {taken.valid} for validation"
    versions.commit([f"{data.name}.dvc"], f"New data: batch {taken.batch}, {added}")


def _take_back(data: Path) -> None:
    """Undoes a version that was not committed."""
    place = work(data)
    if versions.committed(f"{data.name}.dvc") != (place / "record").read_text():
        return  # recorded by an earlier try: it stands
    (place / "journal.json").rename(place / UNDO)  # from here on it never happened
    _undo(data)


def _undo(data: Path) -> None:
    """Puts data/ and its record back; may be repeated. Renaming takes no room on a full disk."""
    place = work(data)
    before, kept = place / "before", place / "record"
    if before.exists():
        if data.exists():
            data.rename(place / "failed")
        before.rename(data)
    if kept.exists():
        kept.rename(data.with_name(f"{data.name}.dvc"))
    remove_folder(place)


def _clear_away(taken: Taken, retrain: RetrainParams, place: Path) -> None:
    inbox, quarantine = Path(retrain.inbox), Path(retrain.quarantine)
    batch, hidden = inbox / taken.folder, inbox / f".taken-{taken.batch}"
    if batch.exists() and not hidden.exists() and fingerprint(batch) == taken.fingerprint:
        batch.rename(hidden)  # what came into it since stays where it is
    if taken.quarantine:
        growing, complete = (quarantine / f"{dot}{taken.quarantine}" for dot in (".", ""))
        if not complete.exists():
            quarantine.mkdir(parents=True, exist_ok=True)
            move_folder(place / "quarantine", growing)
            if taken.keep:
                move_folder(hidden, growing / "original")
            growing.rename(complete)
    try:
        remove_folder(hidden)
    except PermissionError as error:  # nothing looks at hidden folders, and the next batch waits
        print(f"{hidden}: is taken in and cannot be removed ({error.strerror}); remove it by hand")
