"""What all flows share: tasks with retries, and an end without a traceback for a user's mistake."""

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
from prefect.tasks import exponential_backoff
from pydantic import ValidationError

from tumorseg.core.environment import without_password
from tumorseg.core.errors import MISTAKE, InputError, StageError
from tumorseg.core.prefect_server import prefect_server
from tumorseg.core.processes import tag

AGAIN = "type the same again: what has finished stays"


def is_prefect_away(error: BaseException | None) -> bool:
    """Whether Prefect's server failed: its client raises other errors from those of HTTP."""
    while error and not isinstance(error, httpx.HTTPError):
        if isinstance(error, InputError | StageError):
            return False
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error is not None


def explained(error: BaseException) -> str | None:
    """One sentence for a failure that needs no traceback; None for a mistake in the code."""
    if isinstance(error, InputError | StageError):
        return str(error)
    words = " ".join(str(error).split())
    if isinstance(error, OSError):
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
    """Whether a failed task may succeed if it is tried again."""
    failure = state.result(raise_on_failure=False)
    return not isinstance(failure, InputError) and getattr(failure, "again", True)


def without_traceback(record: logging.LogRecord) -> bool:
    """Removes the traceback of an `explained` failure from Prefect's log; the message stays."""
    if record.exc_info and record.exc_info[1] and explained(record.exc_info[1]):
        record.exc_info = None
    return True


for name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).addFilter(without_traceback)

P = ParamSpec("P")
R = TypeVar("R")


def tag_with_process(flow: Any, flow_run: Any, state: Any) -> None:
    """Tags a flow run with its flow and process, for `prefect_server.mark_crashed`."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=[*flow_run.tags, flow.name, tag()])


def stage(name: str, **options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Decorates a function as the flow of that name; what it prints becomes the flow's log."""
    options |= {"log_prints": True, "persist_result": False, "on_running": [tag_with_process]}
    return flow(name=name, **options)


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
        retry_delay_seconds=exponential_backoff(delay_seconds),
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


def command_name() -> str:
    """The name of the module that runs as a command, such as `train`."""
    return Path(getattr(sys.modules["__main__"], "__file__", None) or "").stem


def parser() -> argparse.ArgumentParser:
    """A parser for the options of the module that runs as a command, described by its docstring."""
    usage = f"python -m pipelines.{command_name()}"
    return argparse.ArgumentParser(usage, description=sys.modules["__main__"].__doc__)


def command(entry: Callable[[], Any]) -> None:
    """Runs a flow that is configured by params.yaml alone; on `--help` only describes it."""
    parser().parse_args()
    main(entry)


def scheduled(
    made: Flow[..., Any],
    parameters: dict[str, Any] | None = None,
    rehearse: Callable[[], str] | None = None,
) -> None:
    """The command of a flow that runs once (`--now`) or on a schedule until it is stopped.

    Args:
        made: The flow.
        parameters: Of the runs on the schedule.
        rehearse: What `--dry-run` prints; None for a flow without this option.

    Raises:
        InputError: The cron line is wrong.
    """
    options = parser()
    when = options.add_mutually_exclusive_group(required=True)
    when.add_argument("--now", action="store_true", help="run once, and end")
    when.add_argument("--cron", help="stay, and run at these times, such as '0 3 * * *'")
    if rehearse:
        when.add_argument("--dry-run", action="store_true", help="only say what --now would do")
    chosen = options.parse_args()
    if rehearse and not (chosen.now or chosen.cron):
        print(rehearse())
        return
    with prefect_api():
        if chosen.now:
            made()
            return
        # An earlier process paused the schedule when it stopped.
        how: dict[str, Any] = {"paused": False, "global_limit": 1, "parameters": parameters}
        try:
            made.serve("scheduled", cron=chosen.cron, **how)
        except ValidationError as error:
            raise InputError(f"--cron {chosen.cron!r}: must be such as '0 3 * * *'") from error


def main(entry: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Runs a flow as a command; `explained` failures end it with one sentence.

    Its exit status is then 1, or `MISTAKE` where trying again will not help.
    """
    try:
        entry(*args, **kwargs)
    except Exception as error:
        if (sentence := explained(error)) is None:
            raise
        print(f"{command_name()}: {sentence}", file=sys.stderr, flush=True)
        if is_prefect_away(error):
            # Prefect would try for minutes to deliver its log to the server that does not answer.
            sys.stdout.flush()
            os._exit(1)
        sys.exit(MISTAKE if isinstance(error, InputError) else 1)
