"""Work that is dealt out over the workers of a Dask scheduler, by Prefect's Dask task runner."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dask import config
from distributed import Client
from prefect_dask import DaskTaskRunner

from pipelines._flow import prefect_api, step
from tumorseg.core.environment import STATE
from tumorseg.core.errors import InputError
from tumorseg.core.params import FannedOutParams

PATIENCE_SECONDS = 10
# It would name a dashboard that is not there.
logging.getLogger("prefect.task_runner.dask").setLevel(logging.WARNING)
R = TypeVar("R")


@contextmanager
def workers(params: FannedOutParams) -> Iterator[DaskTaskRunner]:
    """Yields the task runner for a flow, with a Prefect API that the tasks can report to.

    Without a scheduler, the runner starts `params.workers` processes here and ends them.

    Raises:
        InputError: Nothing answers at the scheduler's address, it has no fit workers, or no
            Prefect API.
    """
    if params.scheduler is not None:
        _check(params.section, params.scheduler)
    with prefect_api():
        if params.scheduler is not None:
            yield DaskTaskRunner(address=params.scheduler)
            return
        here = {
            "n_workers": params.workers,
            "threads_per_worker": 1,  # one task at a time; its libraries have their own threads
            "memory_limit": 0,  # Dask holds nothing; it would end a training that needs more
            "host": "127.0.0.1",
            "dashboard_address": None,
            # At the end they would complain that the scheduler has gone; deaths are told elsewhere.
            "env": {"DASK_LOGGING__DISTRIBUTED": "critical"},
            "local_directory": str(Path(STATE / "dask").resolve()),
        }
        yield DaskTaskRunner(cluster_kwargs=here)


def _check(section: str, address: str) -> None:
    if "PREFECT_API_URL" not in os.environ:
        raise InputError(
            f"{section}.scheduler is {address}, whose workers need a Prefect server to report to: "
            "set PREFECT_API_URL, here and for them, to one that both reach"
        )
    try:
        # Dask would wait half a minute, and print a traceback for each try.
        with (
            config.set({"distributed.comm.timeouts.connect": f"{PATIENCE_SECONDS}s"}),
            Client(address, timeout=PATIENCE_SECONDS, set_as_default=False) as client,
        ):
            found = client.scheduler_info(n_workers=-1)["workers"].values()
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{section}.scheduler: no Dask scheduler answers at {address} "
            f"({type(error).__name__}); start one with `dask scheduler`, or set it to null"
        ) from None
    if not found or any(worker["nthreads"] != 1 for worker in found):
        raise InputError(
            f"{section}.scheduler: {address} needs workers that do one task at a time; start them "
            f"with `dask worker {address} --nthreads 1`"
        )


def outcomes(
    function: Callable[..., R], calls: Mapping[str, tuple[Any, ...]], retries: int
) -> Iterator[R | Exception]:
    """Has the workers make each call, as a task of the flow that is running.

    A call whose worker dies goes to another one. Nothing may depend on `__main__`, of which every
    worker would have its own copy: the function is one of a module.

    Args:
        function: What to call.
        calls: What Prefect calls each call, and its arguments.
        retries: Of a call that raises an exception other than InputError.

    Yields:
        What each call returned or raised, in their order, as soon as it and all before are there.
    """
    made: Any = step(function, retries)
    futures = [
        made.with_options(task_run_name=name).submit(*arguments)
        for name, arguments in calls.items()
    ]
    for future in futures:
        try:
            yield future.result()
        except Exception as error:  # a task's own, or Dask's about its workers
            yield error
