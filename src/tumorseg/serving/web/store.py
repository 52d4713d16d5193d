"""A small memory for pictures that nobody needs for long."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Store:
    """Keeps things in memory, for a limited time and up to a limited size; the oldest go first.

    Args:
        seconds: How long an entry lives.
        max_bytes: What all entries together may hold.
        clock: Tells the time in seconds; tests set their own.

    Attributes:
        seconds: As given.
        max_bytes: As given.
    """

    def __init__(
        self,
        seconds: float = 600.0,
        max_bytes: int = 512 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[float, Any, int]] = OrderedDict()
        self._bytes = 0
        self._sweeper: threading.Timer | None = None

    def put(self, key: str, value: Any, size: int | None = None) -> None:
        """Keeps `value` under `key`, in place of what was there.

        Args:
            key: Its name.
            value: Anything that nobody changes any more.
            size: Its size in bytes; `len(value)` if None.
        """
        size = len(value) if size is None else size
        with self._lock:
            self._drop(key)
            self._entries[key] = (self._clock(), value, size)
            self._bytes += size
            self._tidy()
            self._sweep_later()

    def get(self, key: str) -> Any:
        """Returns what is kept under `key`; None if nothing is, or no longer."""
        with self._lock:
            self._tidy()
            entry = self._entries.get(key)
            return entry[1] if entry else None

    def remove(self, key: str) -> None:
        """Lets go of what is kept under `key`, if anything is."""
        with self._lock:
            self._drop(key)

    @property
    def held(self) -> int:
        """How many bytes the entries that are alive hold."""
        with self._lock:
            self._tidy()
            return self._bytes

    def __len__(self) -> int:
        """Returns how many entries are alive."""
        with self._lock:
            self._tidy()
            return len(self._entries)

    def _drop(self, key: str) -> None:
        _, _, size = self._entries.pop(key, (0.0, None, 0))
        self._bytes -= size

    def _tidy(self) -> None:
        # Entries stand in the order of their age, so the first tells about all.
        oldest_allowed = self._clock() - self.seconds
        while self._entries:
            key, (born, _, _) = next(iter(self._entries.items()))
            if self._bytes <= self.max_bytes and born > oldest_allowed:
                break
            self._drop(key)

    def _sweep_later(self) -> None:
        """Has the last scan leave the memory on time, though nobody may ever come back."""
        if self._sweeper is None and self._entries:
            born, _, _ = next(iter(self._entries.values()))
            left = max(0.0, born + self.seconds - self._clock())
            self._sweeper = threading.Timer(left, self._sweep)
            self._sweeper.daemon = True
            self._sweeper.start()

    def _sweep(self) -> None:
        with self._lock:
            self._sweeper = None
            self._tidy()
            self._sweep_later()
