"""A bounded record of what served slices look like, for `python -m pipelines.drift`.

One row per slice: the statistics of the out-of-distribution detector, what was found, and the hour.
It holds no pixels, names or addresses, and cannot be joined with the log: rows are in random order,
and a random number alone tells which came in one request.
"""

import logging
import os
import secrets
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any

from prometheus_client import Counter

from tumorseg.monitoring.ood import DIGITS, METHOD, NAMES, Assessment

VARIABLE = "TUMORSEG_STATISTICS"
TABLE = "tumorseg_slices_" + METHOD.replace("-", "_")  # other methods' statistics do not compare
KEPT = Counter("tumorseg_statistics_rows", "Slices whose statistics were written for drift")
LOST = Counter("tumorseg_statistics_lost", "Slices whose statistics could not be written")

_COLUMNS = {
    "id": "INTEGER PRIMARY KEY",
    "hour": "TEXT",  # of UTC, such as 2026-01-31T17
    "request": "INTEGER",
    "digest": "TEXT",  # of the model
    "area_fraction": "REAL",
    "confidence": "REAL",
    "warned": "INTEGER",
} | dict.fromkeys(NAMES, "REAL")
_MAX_WAITING = 10_000  # rows, some 4 MB


def hour_of(moment: datetime) -> str:
    """The hour of a moment, as rows hold it; they sort by time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H")


class Recorder:
    """Writes rows in a background thread; an error there is logged and counted, and never raised.

    Args:
        path: The SQLite file; created if it does not exist.
        rows: How many it holds at most, from 1; the oldest hours are deleted first.
        seconds: How long rows gather before they are written together, above 0.
        timeout: Seconds to wait for a file that another process has locked.
    """

    def __init__(self, path: Path, rows: int, seconds: float = 5.0, timeout: float = 2.0) -> None:
        self._path, self._rows, self._seconds, self._timeout = path, rows, seconds, timeout
        self._waiting: Queue[tuple[Any, ...]] = Queue(_MAX_WAITING)
        self._end = Event()
        self._failing = False
        self._thread = Thread(target=self._work, name="statistics", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls, rows: int) -> "Recorder | None":
        """A recorder for the file in `TUMORSEG_STATISTICS`; None if it is unset or `rows` is 0."""
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
        """Queues the row of one slice, without waiting.

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
        try:
            self._waiting.put_nowait(row)
        except Full:
            LOST.inc()

    def close(self) -> None:
        """Writes what waits, and ends the thread."""
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            ended = self._end.wait(self._seconds)
            if rows := [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]:
                self._write(rows)

    def _write(self, rows: list[tuple[Any, ...]]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self._path, timeout=self._timeout)) as file, file:
                file.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait
                columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
                file.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} ({columns})")
                file.execute(f"CREATE INDEX IF NOT EXISTS by_hour ON {TABLE} (hour)")
                marks = ", ".join("?" * len(_COLUMNS))
                file.executemany(f"INSERT INTO {TABLE} VALUES ({marks})", rows)
                file.execute(
                    f"DELETE FROM {TABLE} WHERE id NOT IN "
                    f"(SELECT id FROM {TABLE} ORDER BY hour DESC, id DESC LIMIT ?)",
                    [self._rows],
                )
        except (sqlite3.Error, OSError) as error:
            LOST.inc(len(rows))
            if not self._failing:  # one line, however long it lasts
                logging.getLogger("bentoml").warning(
                    "%s cannot be written (%s): statistics for drift are lost until it can be; "
                    "answers are not concerned.",
                    self._path,
                    error,
                )
            self._failing = True
        else:
            KEPT.inc(len(rows))
            self._failing = False
