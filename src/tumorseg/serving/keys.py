"""The one key that the service may be locked with, and where it must be."""

import base64
import binascii
import ipaddress
import os
import secrets
from collections.abc import Callable

from tumorseg.core.errors import InputError
from tumorseg.imaging.study import Refusal

VARIABLE = "TUMORSEG_API_KEY"
OPEN_VARIABLE = "TUMORSEG_OPEN"
NO_KEY = Refusal(401, "The API key is missing or wrong: send it as the header X-API-Key.")


def brings(header: Callable[[str, str], str], key: str) -> bool:
    """Whether a request's headers hold the key; compared in constant time, against guessing.

    Args:
        header: Gives a header by its name, or the second argument where there is none.
        key: The key. Programs send it as X-API-Key or as a Bearer token, browsers as the password
            of Basic authentication.
    """
    kind, _, text = header("authorization", "").partition(" ")
    if kind.lower() not in ("basic", "bearer"):
        text = header("x-api-key", "")
    sent = text.strip().encode("latin-1")  # the bytes that came
    if kind.lower() == "basic":
        try:
            sent = base64.b64decode(sent, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    return secrets.compare_digest(sent, key.encode())


def is_open() -> bool:
    """Whether whoever runs the service says that they guard it themselves, by a gateway."""
    return os.environ.get(OPEN_VARIABLE) == "1"


def is_loopback(host: str) -> bool:
    """Whether only this machine has that name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_reach(host: str) -> None:
    """Allows an address to listen on.

    Raises:
        InputError: Others reach it, no key is set, and nobody said that this is meant.
    """
    if not (is_loopback(host) or os.environ.get(VARIABLE) or is_open()):
        raise InputError(
            f"whoever reaches {host} could use the service: set {VARIABLE}, or {OPEN_VARIABLE}=1 "
            "where a gateway of your own guards it"
        )
