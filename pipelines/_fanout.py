"""Calls of one function, divided among Dask workers by Prefect's Dask task runner."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
        InputError: No scheduler answers at its address, it has no workers of one thread each, or
            PREFECT_API_URL is not set.
    """
    if params.scheduler is None:
        runner = DaskTaskRunner(
            cluster_kwargs={
                "n_workers": params.workers,
                "threads_per_worker": 1,  # one task at a time; its libraries have own threads
                "memory_limit": 0,  # Dask holds nothing; it would end a training that needs more
                "host": "127.0.0.1",
                "dashboard_address": None,
                # At the end they would complain that the scheduler has gone.
                "env": {"DASK_LOGGING__DISTRIBUTED": "critical"},
                "local_directory": str(Path(STATE / "dask").resolve()),
            }
        )
    else:
        _check(params.scheduler)
        runner = DaskTaskRunner(address=params.scheduler)
    with prefect_api():
        yield runner


def _check(address: str) -> None:
    workers: list[dict[str, Any]] = []
    # Dask would wait half a minute, and print a traceback for each try.
    with (
        suppress(OSError, ValueError, RuntimeError, TypeError),
        config.set({"distributed.comm.timeouts.connect": f"{PATIENCE_SECONDS}s"}),
        Client(address, timeout=PATIENCE_SECONDS, set_as_default=False) as client,
    ):
        workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
    if {worker["nthreads"] for worker in workers} != {1} or "PREFECT_API_URL" not in os.environ:
        raise InputError(
            f"{address}: needs a running `dask scheduler`, workers started by `dask worker "
            f"{address} --nthreads 1`, and PREFECT_API_URL set, here and for them"
        )


def outcomes(
    function: Callable[..., R], calls: Mapping[str, tuple[Any, ...]], retries: int
) -> Iterator[R | Exception]:
    """Makes each call on a worker, as a task of the flow that is running.

    A call whose worker dies goes to another one.

    Args:
        function: What to call; of a module, not of `__main__`.
        calls: Name of the task → arguments.
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
        except Exception as error:  # the task's, or Dask's about its workers
            yield error
