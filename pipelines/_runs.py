"""Watching over a flow's runs: alerts where one fails, and dead ones called by their name."""

from typing import Any
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import TaskRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect.utilities.urls import url_for

from tumorseg.core.alerts import alert, sentence
from tumorseg.core.lock import dead_runs, forget_run

LAST = 50  # so many tasks are looked at
LOST = "Its process was killed; the next retraining found that out."


def tell(flow: Any, run: Any, state: Any) -> None:
    """A state hook that posts what failed; it never raises."""
    try:
        alert(flow.name, _failed_step(run), sentence(state.message), url_for(run))
    except Exception as error:  # whatever it is, the failure is what must be seen
        print(f"no alert could be made ({type(error).__name__})")
    forget_run(str(run.id))  # told: the next run need not find it


def _failed_step(run: Any) -> str:
    """The name of the run's last task that did not complete."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    last_first = TaskRunSort.EXPECTED_START_TIME_DESC
    try:
        with get_client(sync_client=True) as client:
            tasks = client.read_task_runs(flow_run_filter=of_run, sort=last_first, limit=LAST)
    except httpx.HTTPError:  # which step it was is worth less than the alert
        return "unknown"
    open_ones = [task for task in tasks if task.state is None or not task.state.is_completed()]
    return open_ones[0].name.rpartition("-")[0] or open_ones[0].name if open_ones else "start"


def bury(*, lock_is_ours: bool) -> None:
    """Marks the runs as Crashed whose process has ended without a word, and posts an alert each.

    Until then Prefect calls them running, and a deployment that may have one run starts no other.
    """
    for number in dead_runs(lock_is_ours=lock_is_ours):
        with get_client(sync_client=True) as client:
            try:
                run = client.read_flow_run(UUID(number))
            except ObjectNotFound:  # of another Prefect server
                forget_run(number)
                continue
            state = run.state
            if state is None or not state.is_final():
                state = Crashed(message=LOST)
                client.set_flow_run_state(run.id, state, force=True)
        if state.is_crashed():
            step = _failed_step(run)
            print(f"run {run.name} was killed during {step}; it is marked as crashed")
            alert("retrain", step, "its process was killed", url_for(run))
        forget_run(number)
