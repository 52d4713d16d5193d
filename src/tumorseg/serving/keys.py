"""The one key that the service may be locked with."""

import base64
import binascii
import secrets
from collections.abc import Callable

from tumorseg.serving.formats.decode import Refusal

VARIABLE = "TUMORSEG_API_KEY"
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
