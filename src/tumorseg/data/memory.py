"""Remembers results by the hash of what they were made from, in one SQLite file."""

import sqlite3
import threading
from pathlib import Path
from types import TracebackType


class Memory:
    """Key → bytes on disk, for several threads; a damaged file is begun anew.

    The whole file may be deleted at any time: what it holds can be made again.
    """

    def __init__(self, path: Path, table: str) -> None:
        """Opens or creates the file.

        Args:
            path: The file, which several tables may share.
            table: What is remembered and by which version of the code, as an identifier.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.table = table
        try:
            self._open(path)
        except sqlite3.DatabaseError:
            path.unlink()
            self._open(path)

    def _open(self, path: Path) -> None:
        self.database = sqlite3.connect(path, check_same_thread=False, timeout=60)
        self.database.execute(
            f"CREATE TABLE IF NOT EXISTS {self.table} (key TEXT PRIMARY KEY, value BLOB)"
        )

    def get(self, key: str) -> bytes | None:
        """What was remembered under a key, if anything."""
        with self.lock:
            row = self.database.execute(
                f"SELECT value FROM {self.table} WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, key: str, value: bytes) -> None:
        """Remembers; for good when the context ends."""
        with self.lock:
            self.database.execute(
                f"INSERT OR REPLACE INTO {self.table} VALUES (?, ?)", (key, value)
            )

    def __enter__(self) -> "Memory":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keeps what was remembered, also after an error: each entry is whole."""
        self.database.commit()
        self.database.close()
