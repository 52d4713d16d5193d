"""retrain: new data in, `dvc repro` stage by stage, and a page that says what came of it.

`python -m pipelines.retrain --now` runs once; `--dry-run` only says what that would do;
`--cron "0 3 * * *"` stays and runs at 3 every night. prefect.yaml is for hosts with workers.
The champion changes only if promote finds the challenger better on the test split.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from filelock import FileLock, Timeout
from prefect import get_client
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import TaskRunSort
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for

from pipelines._flow import main, on_schedule, prefect_api, stage, step
from pipelines.evaluate import REPORTS
from pipelines.promote import DECISION
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
CHILD = STATE / "retrain" / "child"  # the tag of the DVC process that works for a retraining


def reproduce(name: str) -> list[str]:
    """Brings one stage up to date; DVC decides whether it has to run.

    Args:
        name: The stage.

    Returns:
        What DVC ran: the stage's name, or of each of its parts.

    Raises:
        StageError: The stage failed; its own message is in the log above.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", name]
    ran, again = [], True
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        child = psutil.Process(process.pid)
        write_text(CHILD, processes.tag(child))
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line.rstrip())
                again = again and f"exited with {MISTAKE}" not in line
                if match := re.match(r"Running stage '(.+)'", line):
                    ran.append(match[1])
        except BaseException:
            processes.end_tree(child)
            raise
    if process.returncode:
        raise StageError(f"stage {name} failed; later stages did not run", again=again)
    return ran


def end_orphan() -> None:
    """Ends the DVC process of a killed retraining: it would write where this one does."""
    if CHILD.exists() and (child := processes.find(CHILD.read_text())):
        print(f"ending what a killed retraining left running (process {child.pid})")
        processes.end_tree(child)
    CHILD.unlink(missing_ok=True)


def take_in(batch: Path, params: RetrainParams) -> None:
    """Makes what may join of a batch a new data version, and sets apart what is refused."""
    taken = intake.take_in(batch, load_params(ValidateParams), load_params(SplitParams), params)
    print(
        f"batch {taken.batch} ({taken.kind}, {taken.slices} slices): {taken.train} to train, "
        f"{taken.valid} to valid, {sum(taken.refused.values())} to quarantine; "
        f"data version {taken.after}"
    )


def pull() -> None:
    """Fetches the data version that data.dvc names, where a clone has none yet."""
    try:
        dataset.pull()
    except InputError as error:
        print(error)
        raise StageError("dvc pull failed; its own words are in the log") from None


def push(places: list[str]) -> None:
    """Sends the data to DVC's remote and the commits to git's."""
    if "dvc" in places:
        try:
            dataset.push()
        except InputError as error:
            print(error)
            raise StageError("dvc push failed; its own words are in the log") from None
    if "git" in places:
        git.git("push", "--quiet")


def keep(what: str) -> None:
    """Commits what the run changed of dvc.lock and reports/, and nothing else."""
    if not git.has_commits():
        print("this is no git repository with a commit: dvc.lock and reports/ were not committed")
        return
    made = git.commit(["dvc.lock", str(REPORTS)], f"Retrained: {what}")
    print(f"dvc.lock and reports/: {'commit ' + made if made else 'nothing to commit'}")


def publish(text: str) -> None:
    """Shows the page in Prefect and writes it to reports/retrain.md."""
    create_markdown_artifact(key="retrain", markdown=text, description="What a retraining did.")
    write_text(PAGE, text)
    print(text)


def alert_failed(flow: Any, run: Any, state: Any) -> None:
    """A state hook that posts what failed; it raises nothing, since the failure must be seen."""
    try:
        error = state.result(raise_on_failure=False) if state.is_failed() else None
        alert(flow.name, _failed_step(run), sentence(error), url_for(run))
    except Exception as error:
        print(f"no alert could be made ({type(error).__name__})")


def _failed_step(run: Any) -> str:
    """The name of the run's last task that did not complete."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    last_first = TaskRunSort.EXPECTED_START_TIME_DESC
    try:
        with get_client(sync_client=True) as client:
            tasks = client.read_task_runs(flow_run_filter=of_run, sort=last_first, limit=50)
    except httpx.HTTPError:  # which step it was is worth less than the alert
        return "unknown"
    open_ones = [task for task in tasks if task.state is None or not task.state.is_completed()]
    return open_ones[0].name.rpartition("-")[0] or open_ones[0].name if open_ones else "start"


@stage(name="retrain", on_failure=[alert_failed], on_crashed=[alert_failed])
def retrain(because: str = "asked for by hand") -> None:
    """Takes in what lies in the inbox, runs what is out of date, and says what came of it.

    Args:
        because: Who or what asked for it; the page says so.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(LOCK, timeout=0):
            end_orphan()
            if url := PREFECT_API_URL.value():  # a worker's run has no command that did this before
                mark_crashed(url)
            _steps(Account(because), load_params(RetrainParams))
    except Timeout:
        raise StageError(
            f"another retraining is running, which holds {LOCK}: wait for its end, or end it"
        ) from None


@dataclass
class Account:
    """What a run did so far, for its page.

    Attributes:
        because: Who or what asked for it.
        waiting: Number of batches that still change.
        ran: Stages that DVC ran.
        current: Stages of which nothing was out of date.
    """

    because: str
    waiting: int = 0
    ran: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)

    def page(self, failure: str | None = None) -> str:
        """The page about it."""
        return page(
            when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            because=self.because,
            taken=intake.taken_in(),
            waiting=self.waiting,
            version=intake.version(),
            ran=self.ran,
            current=self.current,
            decision=json.loads(DECISION.read_text()) if DECISION.exists() else None,
            failure=failure,
        )


def _steps(account: Account, params: RetrainParams) -> None:
    """The steps in their order, each a task; their account is published also where one fails."""
    tried = partial(step, retries=params.retries, delay_seconds=params.retry_delay_seconds)
    try:
        intake.recover(params)
        if not intake.DATA.exists():
            tried(pull, name="pull data")()
        dataset.refuse_to_lose(intake.DATA)  # or a model would name a version it was not made of
        ready, waiting = inbox.batches(Path(params.inbox), params.settle_seconds)
        account.waiting = len(waiting)
        for batch in ready:
            label = inbox.fingerprint(batch)[:8]
            tried(take_in, name=f"take in {label}")(batch, params)
        for name in STAGES:
            ran = tried(reproduce, name=f"repro {name}")(name)
            account.ran += ran
            account.current += [] if ran else [name]
        decided = json.loads(DECISION.read_text())["decision"]
        tried(keep, name="commit")(decided if "promote" in account.ran else "nothing to decide")
        if params.push:
            tried(push, name="push")(list(params.push))
    except Exception as error:
        with suppress(OSError, httpx.HTTPError):  # what failed first is what must be seen
            tried(publish, name="report")(account.page(sentence(error).rstrip(".")))
        raise
    tried(publish, name="report")(account.page())
    intake.forget_taken()


def command() -> None:
    """Runs the flow once, rehearses it, or serves it on a schedule until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.retrain", description=__doc__)
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--now", action="store_true", help="run once, and end")
    when.add_argument("--dry-run", action="store_true", help="only say what --now would do")
    when.add_argument("--cron", help="stay, and run at these times, such as '0 3 * * *'")
    chosen = parser.parse_args()
    if chosen.dry_run:
        print(intake.rehearse(STAGES))
        return
    with prefect_api():
        if chosen.now:
            retrain()
            return
        on_schedule(retrain, chosen.cron, {"because": f"due by the schedule {chosen.cron}"})


if __name__ == "__main__":
    main(command)
