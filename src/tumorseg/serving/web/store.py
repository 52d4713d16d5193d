"""Pictures and studies of browser sessions, in memory for some minutes."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import flask
from flask.sessions import SecureCookieSessionInterface


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


# Under this owner lies what a client without cookies sent; the name alone opens it.
_NOBODY = ""


class CookieSessions(SecureCookieSessionInterface):
    """Signed cookies that travel encrypted wherever the page does."""

    def get_cookie_secure(self, app: flask.Flask) -> bool:
        """Tells whether the cookie is for HTTPS only: where it was set over HTTPS."""
        return flask.request.is_secure


def current() -> str | None:
    """Returns the id of this request's session; None without a valid cookie."""
    return flask.session.get("id")


def begun() -> str:
    """Returns the id of this request's session, which begins here if there was none."""
    return str(flask.session.setdefault("id", secrets.token_urlsafe(16)))


def keep(
    store: Store, name: str, value: Any, size: int | None = None, *, guessable: bool = False
) -> None:
    """Keeps something for this session.

    A client that came without a cookie may be a script that never sends one: for such clients the
    name opens it too, unless it is `guessable`. Another session never gets it.
    """
    # What this very request began is no cookie that the client came with.
    came_with_cookie = current() is not None and not flask.session.modified
    store.put(f"{begun()}/{name}", value, size)
    if not (came_with_cookie or guessable):
        store.put(f"{_NOBODY}/{name}", value, size)


def find(store: Store, name: str) -> Any:
    """Returns what `keep` kept under `name` for this request's client; None if nothing (now)."""
    return store.get(f"{current() or _NOBODY}/{name}")


def forget(store: Store, name: str) -> None:
    """Lets go of what `keep` kept under `name` for this request's client."""
    for owner in (current() or _NOBODY, _NOBODY):
        store.remove(f"{owner}/{name}")
