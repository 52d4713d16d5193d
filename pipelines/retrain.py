"""retrain: new data from the inbox, `dvc repro` stage by stage, and a page about the run.

`python -m pipelines.retrain --now` runs once; `--dry-run` only says what that would do;
`--cron "0 3 * * *"` stays and runs at 3 every night. prefect.yaml is for hosts with workers.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock, Timeout
from prefect import get_client
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import TaskRunSort
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for

from pipelines._flow import main, scheduled, stage, step
from pipelines._paths import DECISION, REPORTS
from tumorseg.core import git, processes
from tumorseg.core.alerts import alert, sentence
from tumorseg.core.environment import STATE
from tumorseg.core.errors import MISTAKE, InputError, StageError
from tumorseg.core.files import write_text
from tumorseg.core.params import RetrainParams, SplitParams, ValidateParams, load_params
from tumorseg.core.prefect_server import mark_crashed
from tumorseg.data import dataset
from tumorseg.importers import inbox, intake
from tumorseg.reporting.retraining import page

STAGES = ("validate", "split", "augment", "train", "evaluate", "register", "promote", "package")
PAGE = REPORTS / "retrain.md"
LOCK = STATE / "retrain.lock"


def reproduce(name: str) -> list[str]:
    """Brings one stage up to date; DVC decides whether it has to run.

    Args:
        name: The stage.

    Returns:
        What DVC ran: the stage's name, or of each of its parts.

    Raises:
        StageError: The stage failed; its own message is in the log above.
    """
    end_stages()
    ran, again = [], True
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--single-item", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", processes.VARIABLE: str(LOCK.resolve())},
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line.rstrip())
                again = again and f"exited with {MISTAKE}" not in line
                if match := re.match(r"Running stage '(.+)'", line):
                    ran.append(match[1])
        except BaseException:
            end_stages()
            raise
    if process.returncode:
        raise StageError(f"stage {name} failed; later stages did not run", again=again)
    return ran


def end_stages() -> None:
    """Ends the stages of this repository that an earlier retraining or try has left running."""
    mark = str(LOCK.resolve())
    if left := processes.marked(mark):
        print(f"ending what was left running: processes {', '.join(str(one.pid) for one in left)}")
        processes.end_marked(mark)


def take_in(batch: Path, params: RetrainParams) -> None:
    """Makes the slices of a batch that pass a new data version, and sets the others aside."""
    taken = intake.take_in(batch, load_params(ValidateParams), load_params(SplitParams), params)
    print(
        f"batch {taken.batch} ({taken.kind}, {taken.slices} slices): {taken.train} to train, "
        f"{taken.valid} to valid, {sum(taken.refused.values())} to quarantine; "
        f"data version {taken.after}"
    )


def transfer(send_or_fetch: Callable[[], None]) -> None:
    """Runs `dataset.push` or `dataset.pull`, whose failure may pass."""
    try:
        send_or_fetch()
    except InputError as error:
        print(error)
        raise StageError("data could not be sent or fetched; DVC's message is in the log") from None


def keep(what: str) -> None:
    """Commits what the run changed of dvc.lock and reports/, and nothing else."""
    commit = None
    if git.has_commits():
        commit = git.commit(["dvc.lock", str(REPORTS)], f"Retrained: {what}")
    print(f"dvc.lock and reports/: {f'commit {commit}' if commit else 'nothing to commit'}")


def publish(text: str) -> None:
    """Shows the page in Prefect and writes it to reports/retrain.md."""
    create_markdown_artifact(key="retrain", markdown=text, description="What a retraining did.")
    write_text(PAGE, text)
    print(text)


def alert_failed(flow: Any, run: Any, state: Any) -> None:
    """A state hook that posts what failed; its own failure is printed, not raised."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    last_first = TaskRunSort.EXPECTED_START_TIME_DESC
    try:
        with get_client(sync_client=True) as client:
            tasks = client.read_task_runs(flow_run_filter=of_run, sort=last_first, limit=50)
        names = [t.name for t in tasks if t.state is None or not t.state.is_completed()]
        failed = (names[0].rpartition("-")[0] or names[0]) if names else "start"
    except Exception:  # the alert matters more than the step's name
        failed = "unknown"
    try:
        error = state.result(raise_on_failure=False) if state.is_failed() else None
        alert(flow.name, failed, sentence(error), url_for(run))
    except Exception as error:
        print(f"no alert could be made ({type(error).__name__})")


@stage(name="retrain", on_failure=[alert_failed], on_crashed=[alert_failed])
def retrain(because: str = "asked for by hand") -> None:
    """Takes in what lies in the inbox, runs what is out of date, and says what came of it.

    Args:
        because: Who or what asked for it; the page says so.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(LOCK, timeout=0):
            end_stages()
            if url := PREFECT_API_URL.value():  # a worker's run has no command that did this before
                mark_crashed(url)
            _steps(because, load_params(RetrainParams))
    except Timeout:
        raise StageError(
            f"another retraining is running, which holds {LOCK}: wait for its end, or end it"
        ) from None


def _steps(because: str, params: RetrainParams) -> None:
    """The steps in their order, each a task; the page is published also where one fails."""
    tried = partial(step, retries=params.retries, delay_seconds=params.retry_delay_seconds)
    ran: list[str] = []
    current: list[str] = []
    waiting: list[Path] = []

    def report(failure: str | None = None) -> None:
        text = page(
            when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            because=because,
            taken=intake.taken_in(),
            waiting=len(waiting),
            version=intake.version(),
            ran=ran,
            current=current,
            decision=json.loads(DECISION.read_text()) if DECISION.exists() else None,
            failure=failure,
        )
        tried(publish, name="report")(text)

    try:
        intake.recover(params)
        if not intake.DATA.exists():
            tried(transfer, name="pull data")(dataset.pull)
        dataset.refuse_to_lose(intake.DATA)  # or a model would name a version it was not made of
        ready, waiting = inbox.batches(Path(params.inbox), params.settle_seconds)
        for batch in ready:
            label = inbox.fingerprint(batch)[:8]
            tried(take_in, name=f"take in {label}")(batch, params)
        for name in STAGES:
            parts = tried(reproduce, name=f"repro {name}")(name)
            ran += parts
            current += [] if parts else [name]
        decided = json.loads(DECISION.read_text())["decision"]
        tried(keep, name="commit")(decided if "promote" in ran else "nothing to decide")
        if "dvc" in params.push:
            tried(transfer, name="push data")(dataset.push)
        if "git" in params.push:
            tried(git.git, name="push commits")("push", "--quiet")
    except Exception as error:
        with suppress(OSError, httpx.HTTPError):  # the first failure is the one to report
            report(sentence(error).rstrip("."))
        raise
    report()
    intake.forget_taken()


if __name__ == "__main__":
    why = {"because": "due by its schedule"}
    main(scheduled, retrain, why, partial(intake.rehearse, STAGES))
