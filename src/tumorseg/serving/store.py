"""A small memory for pictures that nobody needs for long."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class Store:
    """Keeps files in memory, for a limited time and up to a limited size; the oldest go first.

    Args:
        seconds: How long an entry lives.
        max_bytes: What all entries together may hold.
        clock: Tells the time in seconds; tests set their own.
    """

    def __init__(
        self, seconds: float, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def put(self, key: str, data: bytes) -> None:
        """Keeps `data` under `key`, in place of what was there."""
        with self._lock:
            self._drop(key)
            self._entries[key] = (self._clock(), data)
            self._bytes += len(data)
            self._tidy()

    def get(self, key: str) -> bytes | None:
        """Returns what is kept under `key`; None if nothing is, or no longer."""
        with self._lock:
            self._tidy()
            entry = self._entries.get(key)
            return entry[1] if entry else None

    def __len__(self) -> int:
        """Returns how many entries are alive."""
        with self._lock:
            self._tidy()
            return len(self._entries)

    def _drop(self, key: str) -> None:
        _, data = self._entries.pop(key, (0.0, b""))
        self._bytes -= len(data)

    def _tidy(self) -> None:
        # Entries stand in the order of their age, so the first tells about all.
        oldest_allowed = self._clock() - self._seconds
        while self._entries:
            key, (born, _) = next(iter(self._entries.items()))
            if self._bytes <= self._max_bytes and born > oldest_allowed:
                break
            self._drop(key)
