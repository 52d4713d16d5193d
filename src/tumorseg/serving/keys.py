"""The API key, and where the service may listen without one."""

import base64
import binascii
import ipaddress
import os
import secrets

from starlette.datastructures import Headers

from tumorseg.core.errors import InputError

VARIABLE = "TUMORSEG_API_KEY"
OPEN_VARIABLE = "TUMORSEG_OPEN"


def has_key(headers: Headers, key: str) -> bool:
    """Whether a request's headers hold the key; compared in constant time.

    Programs send it as X-API-Key or as a Bearer token, browsers as the password of Basic
    authentication.
    """
    kind, _, text = headers.get("authorization", "").partition(" ")
    if kind.lower() not in ("basic", "bearer"):
        text = headers.get("x-api-key", "")
    sent = text.strip().encode("latin-1")  # the bytes that came
    if kind.lower() == "basic":
        try:
            sent = base64.b64decode(sent, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    return secrets.compare_digest(sent, key.encode())


def is_open() -> bool:
    """Whether a gateway in front of the service decides who may use it, by TUMORSEG_OPEN=1."""
    return os.environ.get(OPEN_VARIABLE) == "1"


def is_loopback(host: str) -> bool:
    """Whether a name or address is of this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_reach(host: str) -> None:
    """Checks that an address to listen on is loopback, or guarded.

    Raises:
        InputError: It is not, no key is set, and the service is not declared open.
    """
    if not (is_loopback(host) or os.environ.get(VARIABLE) or is_open()):
        raise InputError(
            f"--host {host}: other machines could use the service there; set {VARIABLE}, or "
            f"{OPEN_VARIABLE}=1 where a gateway of your own guards it"
        )
