"""Alerts by webhook: what failed and when, without names of files or patients."""

import os
import time
from typing import Any

import httpx

from tumorseg.core.errors import StageError

VARIABLE = "TUMORSEG_ALERT_URL"


def sentence(error: object) -> str:
    """What an alert says of a failure: a StageError's message, since others may name files."""
    if isinstance(error, StageError):
        return str(error)
    kind = type(error).__name__ if isinstance(error, Exception) else "it was cancelled or killed"
    return f"{kind}; the run's log says more"


def alert(flow: str, stage: str, message: str, run_url: str | None) -> bool:
    """Posts JSON with flow, stage, sentence, time and run_url to TUMORSEG_ALERT_URL, if it is set.

    Args:
        flow: The flow's name.
        stage: What failed.
        message: One sentence, from `sentence`.
        run_url: The run's page.

    Returns:
        Whether it was received. If not, the reason is printed, without the address, which may
        hold a secret; nothing is raised, since that would hide the failure.
    """
    address = os.environ.get(VARIABLE)
    if not address:
        return False
    body: dict[str, Any] = {"flow": flow, "stage": stage, "sentence": message}
    body |= {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "run_url": run_url}
    for _ in range(2):
        try:
            httpx.post(address, json=body, timeout=10).raise_for_status()
            return True
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = type(error).__name__
    print(f"the alert could not be posted to {VARIABLE} ({why})")
    return False
