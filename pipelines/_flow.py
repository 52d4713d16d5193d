"""What all flows share: a task that tries again, and an end without a traceback for bad input."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import httpx
from mlflow.exceptions import MlflowException
from prefect import Flow, flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

from tumorseg.core.environment import without_password
from tumorseg.core.errors import MISTAKE, InputError, StageError
from tumorseg.core.prefect_server import prefect_server
from tumorseg.core.processes import tag

AGAIN = "type the same again: what has finished stays"


def is_prefect_away(error: BaseException | None) -> bool:
    """Whether Prefect's server failed; its client wraps what it met in other errors."""
    while error and not isinstance(error, httpx.HTTPError):
        if isinstance(error, InputError | StageError):
            return False
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error is not None


def explained(error: BaseException) -> str | None:
    """One sentence for a failure that needs no traceback, of the user or of what runs around us."""
    if isinstance(error, InputError | StageError):
        return str(error)
    words = " ".join(str(error).split())
    if isinstance(error, OSError) and not isinstance(error, httpx.HTTPError):
        return f"{words}; once that is mended (a full disk: make room), {AGAIN}"
    if is_prefect_away(error):
        place = os.environ.get("PREFECT_API_URL", "its own address")
        answer = getattr(error, "response", None)
        why = f"status {answer.status_code}" if answer is not None else type(error).__name__
        return f"Prefect at {place} does not work ({why}); once it does, {AGAIN}"
    if isinstance(error, MlflowException):
        place = without_password(os.environ["MLFLOW_TRACKING_URI"])
        return f"MLflow at {place} does not work ({words[:200]}); once it does, {AGAIN}"
    return None


def is_worth_retrying(task: Any, run: Any, state: Any) -> bool:
    """Whether a failure may pass by itself: a mistake in the input will not."""
    failure = state.result(raise_on_failure=False)
    return not isinstance(failure, InputError) and getattr(failure, "again", True)


def without_traceback(record: logging.LogRecord) -> bool:
    """Drops a traceback that would tell nothing from Prefect's log; the message stays."""
    if record.exc_info and record.exc_info[1] and explained(record.exc_info[1]):
        record.exc_info = None
    return True


def without_own(record: logging.LogRecord) -> bool:
    """Drops the two lines with which Prefect frames the hook below, unless it failed."""
    return record.levelno > logging.INFO or "ook 'own'" not in record.getMessage()


for name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).addFilter(without_traceback)
logging.getLogger("prefect.engine").addFilter(without_own)

P = ParamSpec("P")
R = TypeVar("R")

# DVC knows what is up to date; a second cache could only disagree with it.


def own(flow: Any, flow_run: Any, state: Any) -> None:
    """Tags a flow run with its flow and process, for `prefect_server.mark_crashed`."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=[*flow_run.tags, flow.name, tag()])


def stage(name: str, **options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Decorates a function as the flow of that name; what it prints becomes the flow's log."""
    return flow(name=name, log_prints=True, persist_result=False, on_running=[own], **options)


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


@contextmanager
def prefect_api() -> Iterator[None]:
    """Has the flows of a command talk to one Prefect server, started for it if none is there."""
    # Prefect read its settings when it was imported, before this server had an address.
    with prefect_server() as url, temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            APILogHandler().flush()  # or the last lines find no server any more


def on_schedule(made: Flow[..., Any], cron: str, parameters: dict[str, Any] | None = None) -> None:
    """Runs a flow at the times of a cron line until it is stopped, one run at a time.

    Raises:
        InputError: It is no cron line.
    """
    try:
        # An earlier process paused the schedule when it stopped; this one takes it up again.
        made.serve("scheduled", cron=cron, global_limit=1, paused=False, parameters=parameters)
    except ValidationError:
        raise InputError(f"--cron {cron!r}: is no cron line, such as '0 3 * * *'") from None


def command(entry: Callable[[], Any]) -> None:
    """Runs a flow that is configured by params.yaml alone; on `--help` only says what it is."""
    module = sys.modules["__main__"]
    name = Path(module.__file__ or "").stem
    argparse.ArgumentParser(f"python -m pipelines.{name}", description=module.__doc__).parse_args()
    main(entry)


def main(entry: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Runs a flow as a command; failures that are `explained` end it with one sentence.

    Its exit status is then 1, or `MISTAKE` where trying again will not help.
    """
    try:
        entry(*args, **kwargs)
    except Exception as error:
        if (sentence := explained(error)) is None:
            raise
        # A flow has its stage's name; a command has its module's, as it was typed.
        name = (
            getattr(entry, "name", None) or Path(sys.modules[entry.__module__].__file__ or "").stem
        )
        sentence = f"{name}: {sentence}"
        if is_prefect_away(error):
            # Prefect would try for minutes to deliver its log to the server that does not answer.
            print(sentence, file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(1)
        print(sentence, file=sys.stderr)
        sys.exit(MISTAKE if isinstance(error, InputError) else 1)
