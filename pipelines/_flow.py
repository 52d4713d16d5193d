"""What all flows share: a task that tries again, and an end without a traceback for bad input."""

import logging
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Flow, flow, task
from prefect.cache_policies import NO_CACHE

from tumorseg.errors import InputError, StageError


def is_worth_retrying(task: Any, run: Any, state: Any) -> bool:
    """Whether a failure may pass by itself: a mistake in the input will not."""
    return not isinstance(state.result(raise_on_failure=False), InputError)


def without_traceback(record: logging.LogRecord) -> bool:
    """Drops a traceback that would tell nothing from Prefect's log; the message stays."""
    if record.exc_info and isinstance(record.exc_info[1], InputError | StageError):
        record.exc_info = None
    return True


for name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).addFilter(without_traceback)

P = ParamSpec("P")
R = TypeVar("R")

# DVC knows what is up to date; a second cache could only disagree with it.


def stage(name: str, **options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Decorates a function as the flow of that name; what it prints becomes the flow's log."""
    return flow(name=name, log_prints=True, persist_result=False, **options)


def step(
    function: Callable[P, R],
    retries: int = 0,
    delay_seconds: float = 5,
    name: str | None = None,
) -> Callable[P, R]:
    """Makes a function a task of the flow that calls it.

    Args:
        function: What to run.
        retries: For what talks to MLflow, BentoML or a disk that others share; a mistake in the
            input is never retried.
        delay_seconds: Before the first retry; it doubles each time.
        name: What Prefect calls it, by default the function's name.
    """
    made: Any = task(
        name=name,
        log_prints=True,
        persist_result=False,
        cache_policy=NO_CACHE,
        retries=retries,
        retry_delay_seconds=[delay_seconds * 2**n for n in range(retries)] or None,
        retry_condition_fn=is_worth_retrying,
    )(function)
    return cast(Callable[P, R], made)


def main(entry: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Runs a flow as a command: exit status 1 and one sentence on bad input."""
    try:
        entry(*args, **kwargs)
    except (InputError, StageError) as error:
        sys.exit(f"{getattr(entry, 'name', entry.__name__)}: {error}")
