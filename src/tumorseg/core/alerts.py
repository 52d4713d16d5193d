"""A word to whoever watches, by webhook: what failed and when, never whose scan it was."""

import os
import time
from typing import Any

import httpx

from tumorseg.core.errors import StageError

VARIABLE = "TUMORSEG_ALERT_URL"
TIMEOUT_SECONDS = 10.0
TRIES = 2


def sentence(error: object) -> str:
    """What an alert may say of a failure, whose message may name files.

    That is a StageError's message; of another exception its type; where there is none, as for a run
    that was cancelled, that it was ended from outside.
    """
    if isinstance(error, StageError):
        return str(error)
    if isinstance(error, Exception):
        return f"{type(error).__name__}; the run's log says more"
    return "it was ended from outside; the run's log says more"


def alert(flow: str, stage: str, said: str, run_url: str | None) -> bool:
    """Posts JSON with flow, stage, sentence, time and run_url to TUMORSEG_ALERT_URL, if it is set.

    Args:
        flow: The flow's name.
        stage: What failed.
        said: One sentence, from `sentence`.
        run_url: The run's page.

    Returns:
        Whether it was received; what hindered it is printed, without the address, which may hold
        a secret. Nothing is raised: a failing alert must not hide the failure.
    """
    address = os.environ.get(VARIABLE)
    if not address:
        return False
    body: dict[str, Any] = {"flow": flow, "stage": stage, "sentence": said}
    body |= {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "run_url": run_url}
    why = ""
    for _ in range(TRIES):
        try:
            answer = httpx.post(address, json=body, timeout=TIMEOUT_SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = type(error).__name__
            continue
        if answer.is_success:
            return True
        why = f"status {answer.status_code}"
    print(f"the alert could not be posted to {VARIABLE} ({why})")
    return False
