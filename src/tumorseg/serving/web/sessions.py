"""Whose picture is whose: keys of the store that begin with a browser session."""

import secrets
from typing import Any

import flask
from flask.sessions import SecureCookieSessionInterface

from tumorseg.serving.web.store import Store

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
