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
    """Keeps values in memory, for a limited time and up to a limited size; the oldest go first.

    Args:
        seconds: How long an entry is kept.
        max_bytes: What all entries together may hold.
        clock: Gives the time in seconds.

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
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, tuple[float, Any, int]] = OrderedDict()
        self._bytes = 0
        self._sweeper: threading.Timer | None = None

    def put(self, key: str, value: Any, size: int | None = None) -> None:
        """Keeps `value`, of `size` bytes (`len(value)` if None), in place of what `key` had."""
        size = len(value) if size is None else size
        with self._lock:
            self.remove(key)
            self._entries[key] = (self._clock(), value, size)
            self._bytes += size
            self._drop_old()
            if self._sweeper is None:
                self._sweep()

    def get(self, key: str) -> Any:
        """Returns what is kept under `key`; None if nothing is."""
        with self._lock:
            self._drop_old()
            return self._entries.get(key, (0, None, 0))[1]

    def remove(self, key: str) -> None:
        """Drops what is kept under `key`, if anything is."""
        with self._lock:
            self._bytes -= self._entries.pop(key, (0, None, 0))[2]

    @property
    def held(self) -> int:
        """The size of all entries, in bytes."""
        with self._lock:
            self._drop_old()
            return self._bytes

    def _drop_old(self) -> None:
        while self._entries:
            key, (since, _, _) = next(iter(self._entries.items()))
            if self._bytes <= self.max_bytes and self._clock() < since + self.seconds:
                break
            self.remove(key)

    def _sweep(self) -> None:
        """Drops what is too old now, and again when the next entry will be."""
        with self._lock:
            self._drop_old()
            self._sweeper = None
            if self._entries:
                since, _, _ = next(iter(self._entries.values()))
                left = max(0.0, since + self.seconds - self._clock())
                self._sweeper = threading.Timer(left, self._sweep)
                self._sweeper.daemon = True
                self._sweeper.start()


# The owner of what a client without cookies sent; the name alone opens it.
_NOBODY = ""


def from_listed_page() -> bool:
    """Whether a page of a listed origin sent this request; `<img>` sends only a Referer."""
    referer = "/".join(flask.request.headers.get("Referer", "").split("/", 3)[:3])
    origin = flask.request.headers.get("Origin") or referer
    return origin in flask.current_app.config["LISTED_ORIGINS"]


class CookieSessions(SecureCookieSessionInterface):
    """Signed session cookies, for HTTPS only where they were set over HTTPS."""

    def get_cookie_secure(self, app: flask.Flask) -> bool:
        """Whether browsers may send the cookie over HTTPS only."""
        return flask.request.is_secure

    def get_cookie_samesite(self, app: flask.Flask) -> str:
        """Lets pages of listed sites send the cookie; browsers accept that with HTTPS only."""
        return "None" if flask.request.is_secure and from_listed_page() else "Lax"


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
    # A session that this very request began is no cookie that the client came with.
    came_with_cookie = current() is not None and not flask.session.modified
    store.put(f"{begun()}/{name}", value, size)
    if not (came_with_cookie or guessable):
        store.put(f"{_NOBODY}/{name}", value, size)


def find(store: Store, name: str) -> Any:
    """Returns what `keep` kept under `name` for this request's client; None if nothing."""
    return store.get(f"{current() or _NOBODY}/{name}")


def forget(store: Store, name: str) -> None:
    """Drops what `keep` kept under `name` for this request's client."""
    for owner in (current() or _NOBODY, _NOBODY):
        store.remove(f"{owner}/{name}")
