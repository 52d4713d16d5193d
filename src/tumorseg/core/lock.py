"""One at a time, over processes and hosts that share a disk: a lock that dies with its owner.

The kernel's lock on the file decides; what is written in it only tells who has it, and lets the
next owner end what a dead one left running. Each run leaves a note besides, so that it can be told
which runs are dead though Prefect calls them running.
"""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tumorseg.core.environment import STATE
from tumorseg.core.errors import StageError
from tumorseg.core.files import write_json
from tumorseg.core.processes import Process, end_group, members, process

LOCK = STATE / "retrain.lock"
NOTES = STATE / "retrain" / "runs"


class Held:
    """The lock while it is held; `child` notes what would outlive a killed owner."""

    def __init__(self, file: IO[str], run: str | None) -> None:
        self.file = file
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self.told: dict[str, Any] = {"owner": asdict(process()), "since": since, "run": run}
        self._write(self.told)

    def _write(self, told: dict[str, Any] | None) -> None:
        self.file.seek(0)
        self.file.truncate()
        if told is not None:
            json.dump(told, self.file)
        self.file.flush()

    def child(self, pid: int) -> None:
        """Notes a child that leads a process group of its own."""
        self._write(self.told | {"child": asdict(process(pid))})

    def forget(self) -> None:
        """Notes that there is no owner."""
        self._write(None)


@contextmanager
def hold(path: Path = LOCK, run: str | None = None) -> Iterator[Held]:
    """Holds the lock for the context.

    What a dead owner on this host left running is ended first.

    Args:
        path: The lock's file.
        run: The Prefect run that holds it.

    Raises:
        StageError: Another process holds it; the sentence says which, and since when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            # Of the open file, not of the process: it holds between threads, too.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = _read(file)
            owner = told.get("owner", {})
            raise StageError(
                f"another retraining is running (process {owner.get('pid', 'unknown')} on "
                f"{owner.get('host', 'unknown')}, since {told.get('since', 'just now')}): wait for "
                "its end, or end it"
            ) from None
        _end_orphans(_read(file))
        held = Held(file, run)
        try:
            yield held
        finally:
            held.forget()


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        told: dict[str, Any] = json.load(file)
    except ValueError:  # empty, or read while it is written
        return {}
    return told


def _end_orphans(told: dict[str, Any]) -> None:
    """Ends the group of a child whose owner was killed: it would write where the next one does."""
    if "child" not in told:
        return
    leader, now = Process(**told["child"]), process(told["child"]["pid"])
    if (leader.host, leader.boot) != (now.host, now.boot) or not members(leader.pid):
        return
    if now.began not in ("", leader.began):
        return  # the number is another process's by now
    print(f"ending what the killed process {told['owner']['pid']} left running")
    end_group(leader.pid)


@contextmanager
def noted(run: str, folder: Path = NOTES) -> Iterator[Path]:
    """Leaves a note, while the context lasts, of the process that executes a run."""
    note = folder / f"{run}.json"
    write_json(note, asdict(process()) | {"held": False})
    try:
        yield note
    finally:
        note.unlink(missing_ok=True)


def note_held(note: Path) -> None:
    """Writes into a run's note that it holds the lock."""
    write_json(note, json.loads(note.read_text()) | {"held": True})


def dead_runs(folder: Path = NOTES, *, lock_is_ours: bool = False) -> list[str]:
    """The runs that left a note and whose process has ended.

    Of another host's process nothing can be known, but that it does not hold a lock that we hold.

    Args:
        folder: Where the notes are.
        lock_is_ours: Whether the caller holds the lock.
    """
    found = []
    for note in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            told = json.loads(note.read_text())
            held = told.pop("held")
            lives = Process(**told).lives()
            if lives is False or (lives is None and held and lock_is_ours):
                found.append(note.stem)
    return found


def forget_run(run: str, folder: Path = NOTES) -> None:
    """Removes a run's note."""
    (folder / f"{run}.json").unlink(missing_ok=True)
