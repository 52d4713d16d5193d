"""What names a request, and what the log says of one that failed."""

import json
import logging
import re
import secrets
import traceback

HEADER = "X-Request-ID"
LOG = logging.getLogger("tumorseg.requests")
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def identify(sent: str | None) -> str:
    """Names a request: as its client did in `HEADER`, if that is a short token, else anew."""
    return sent if sent and _SAFE_ID.fullmatch(sent) else secrets.token_hex(8)


def log_failure(error: BaseException, request: str) -> None:
    """Logs where an unforeseen error arose, but no message, which may quote a scan, and no path."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    LOG.error(json.dumps({"request": request, "failed": type(error).__name__, "at": frames}))
