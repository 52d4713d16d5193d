"""A bounded record of what served slices look like, for `python -m pipelines.drift`.

A row a slice: the statistics of the out-of-distribution detector, what was found, and the hour.
No pixels, names or addresses, and nothing by which a row could be joined with the log: rows lie in
random order, and a random number alone says which came in one request.
"""

import logging
import os
import secrets
import sqlite3
import threading
from collections import deque
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from tumorseg.monitoring.ood import DIGITS, METHOD, NAMES, Assessment

VARIABLE = "TUMORSEG_STATISTICS"
_OURS = "tumorseg_slices_"
TABLE = _OURS + METHOD.replace("-", "_")  # statistics of another method do not compare
KEPT = Counter("tumorseg_statistics_rows", "Slices whose statistics were written for drift")
LOST = Counter("tumorseg_statistics_lost", "Slices whose statistics could not be written")

_ABOUT = {
    "hour": "TEXT",  # of UTC, such as 2026-01-31T17
    "request": "INTEGER",
    "digest": "TEXT",  # of the model
    "area_fraction": "REAL",
    "confidence": "REAL",
    "warned": "INTEGER",
}
_COLUMNS = {"id": "INTEGER PRIMARY KEY"} | _ABOUT | dict.fromkeys(NAMES, "REAL")
_SECONDS = 5.0  # in which rows gather
_MOST_WAITING = 10_000  # rows, some 4 MB
_PATIENCE_SECONDS = 2.0  # with a file that somebody else has locked


def hour_of(moment: datetime) -> str:
    """The hour of a moment, as rows hold it; they sort by time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H")


class Recorder:
    """Writes rows in a thread of its own; whatever goes wrong there, answers go out as ever.

    Args:
        path: The SQLite file; made where there is none.
        rows: How many it holds at most, from 1; the oldest hours go first.
        seconds: How long rows gather before they are written together.
    """

    def __init__(self, path: Path, rows: int, seconds: float = _SECONDS) -> None:
        self._path, self._rows, self._seconds = path, rows, seconds
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._lock = threading.Lock()
        self._any, self._end = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = False

    @classmethod
    def from_environment(cls, rows: int) -> "Recorder | None":
        """The recorder that `TUMORSEG_STATISTICS` asks for; None if it is unset or `rows` is 0."""
        named = os.environ.get(VARIABLE)
        return cls(Path(named), rows) if named and rows else None

    def record(
        self,
        digest: str,
        request: int,
        area_fraction: float,
        confidence: float | None,
        assessment: Assessment,
    ) -> None:
        """Takes the row of one slice, and returns at once.

        Args:
            digest: The model's.
            request: A random number, the same for all slices of a request.
            area_fraction: Share of the slice that is predicted as tumour.
            confidence: Mean probability inside the mask; None where the mask is empty.
            assessment: Of the slice; one without statistics is not recorded.
        """
        if assessment.statistics is None:
            return
        row = (
            secrets.randbits(62),
            hour_of(datetime.now(UTC)),
            request,
            digest,
            round(area_fraction, 6),
            None if confidence is None else round(confidence, DIGITS),
            int(bool(assessment.warnings)),
            *assessment.statistics.round(DIGITS).tolist(),
        )
        with self._lock:
            if self._end.is_set() or len(self._waiting) >= _MOST_WAITING:
                LOST.inc()
                return
            self._waiting.append(row)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="statistics", daemon=True)
                self._thread.start()
        self._any.set()

    def close(self) -> None:
        """Writes what waits; from now on nothing is taken."""
        with self._lock:
            self._end.set()
        self._any.set()
        if self._thread:
            self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            self._any.wait()
            self._any.clear()
            ended = self._end.wait(self._seconds)
            with self._lock:
                rows = list(self._waiting)
                self._waiting.clear()
            if rows:
                self._write(rows)

    def _write(self, rows: list[tuple[Any, ...]]) -> None:
        try:
            with closing(self._opened()) as file, file:
                marks = ", ".join("?" * len(_COLUMNS))
                file.executemany(f"INSERT INTO {TABLE} VALUES ({marks})", rows)
                (held,) = file.execute(f"SELECT count(*) FROM {TABLE}").fetchone()
                file.execute(
                    f"DELETE FROM {TABLE} WHERE id IN "
                    f"(SELECT id FROM {TABLE} ORDER BY hour, id LIMIT ?)",
                    [max(0, held - self._rows)],
                )
        except (sqlite3.Error, OSError) as error:
            LOST.inc(len(rows))
            if not self._failing:  # once, however long it lasts
                logging.getLogger("bentoml").warning(
                    "%s cannot be written (%s): statistics for drift are lost until it can, "
                    "answers are not concerned.",
                    self._path,
                    error,
                )
            self._failing = True
        else:
            KEPT.inc(len(rows))
            self._failing = False

    def _opened(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        file = sqlite3.connect(self._path, timeout=_PATIENCE_SECONDS)
        try:
            file.execute("PRAGMA journal_mode = WAL")  # who reads never waits, nor is waited for
            with file:
                tables = file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                for (name,) in tables.fetchall():
                    if name.startswith(_OURS) and name != TABLE:
                        file.execute(f'DROP TABLE "{name}"')
                columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
                file.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} ({columns})")
                file.execute(f"CREATE INDEX IF NOT EXISTS by_hour ON {TABLE} (hour)")
        except BaseException:
            file.close()
            raise
        return file
