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
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prefect import runtime
from prefect.artifacts import create_markdown_artifact

from pipelines._flow import main, on_schedule, prefect_api, stage, step
from pipelines._runs import bury, tell
from pipelines.evaluate import REPORTS
from pipelines.promote import DECISION
from tumorseg.core import git as versions
from tumorseg.core import lock
from tumorseg.core.alerts import sentence
from tumorseg.core.errors import MISTAKE, InputError, StageError
from tumorseg.core.files import FULL, atomic_path, ended_if_full, says_full, told_if_full
from tumorseg.core.params import RetrainParams, SplitParams, ValidateParams, load_params
from tumorseg.core.processes import end_group
from tumorseg.data import dataset
from tumorseg.importers import inbox, intake, rehearsal
from tumorseg.reporting.retraining import page

STAGES = ("validate", "split", "augment", "train", "evaluate", "register", "promote", "package")
PAGE = REPORTS / "retrain.md"


def reproduce(name: str, noted: Callable[[int], None] = lambda pid: None) -> list[str]:
    """Brings one stage up to date; DVC decides whether it has to run.

    Args:
        name: The stage.
        noted: Told the process that leads a group of its own: whoever kills this one must end it.

    Returns:
        What DVC ran: the stage's name, or of each of its parts.

    Raises:
        StageError: The stage failed; its own message is in the log above.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", name]
    ran, full, again = [], False, True
    dataset.forget_ended()
    with (
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as process,
        ended_if_full(process) as without_room,
    ):
        try:
            noted(process.pid)
            assert process.stdout is not None
            for line in process.stdout:
                print(line.rstrip())
                full = full or says_full(line)
                again = again and f"exited with {MISTAKE}" not in line
                if match := re.match(r"Running stage '(.+)'", line):
                    ran.append(match[1])
        except BaseException:
            end_group(process.pid)
            raise
    if process.returncode:
        full = full or without_room.is_set()
        why = f"failed, since {FULL}: make room and start again" if full else "failed"
        raise StageError(f"stage {name} {why}; later stages did not run", again=again)
    return ran


def examine(batch: Path, params: RetrainParams) -> bool:
    """Checks and audits a batch and stages what may join; False if it changed meanwhile."""
    if not intake.stage(batch, load_params(ValidateParams), load_params(SplitParams), params):
        print("the batch changed while it was read; it is left for the next time")
        return False
    return True


def record(params: RetrainParams, batch: Path | None = None) -> None:
    """Makes what is staged the new data version, and sets aside what is refused.

    Args:
        params: The retrain section.
        batch: To examine anew where an earlier try took all back; None if a run before began it.
    """
    if not intake.unfinished() and (batch is None or not examine(batch, params)):
        return
    taken = intake.finish(params)
    outside = sum(taken.refused.values())
    print(
        f"batch {taken.batch} ({taken.kind}, {taken.slices} slices): {taken.train} to train, "
        f"{taken.valid} to valid, {outside} to quarantine; data version {taken.after}"
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
        versions.git("push", "--quiet")


def keep(what: str) -> None:
    """Commits what the run changed of dvc.lock and reports/, and nothing else."""
    if not versions.has_commits():
        print("this is no git repository with a commit: dvc.lock and reports/ were not committed")
        return
    made = versions.commit(["dvc.lock", str(REPORTS)], f"Retrained: {what}")
    print(f"dvc.lock and reports/: {'commit ' + made if made else 'nothing to commit'}")


def publish(text: str) -> None:
    """Shows the page in Prefect and writes it to reports/retrain.md."""
    create_markdown_artifact(key="retrain", markdown=text, description="What a retraining did.")
    with told_if_full("the champion is as the page says"), atomic_path(PAGE) as temporary:
        temporary.write_text(text)
    print(text)


@stage(name="retrain", on_failure=[tell], on_crashed=[tell])
def retrain(because: str = "asked for by hand") -> None:
    """Takes in what lies in the inbox, runs what is out of date, and says what came of it.

    Args:
        because: Who or what asked for it; the page says so.
    """
    run = str(runtime.flow_run.id)
    with (
        told_if_full("what has finished stays"),
        lock.noted(run) as note,
        lock.hold(run=run) as held,
    ):
        lock.note_held(note)
        bury(lock_is_ours=True)
        _steps(Account(because), load_params(RetrainParams), held)


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


def _steps(account: Account, params: RetrainParams, held: lock.Held) -> None:
    """The steps in their order, each a task; their account is published also where one fails."""
    tried = partial(step, retries=params.retries, delay_seconds=params.retry_delay_seconds)
    try:
        intake.tidy()
        if intake.unfinished():
            tried(record, name="record what was cut off")(params)
        if not intake.DATA.exists():
            tried(pull, name="pull data")()
        dataset.refuse_to_lose(intake.DATA)  # or a model would name a version it was not made of
        ready, waiting = inbox.batches(Path(params.inbox), params.settle_seconds)
        account.waiting = len(waiting)
        for batch in ready:
            label = inbox.fingerprint(batch)[:8]
            if tried(examine, name=f"examine {label}")(batch, params):
                tried(record, name=f"record {label}")(params, batch)
        for name in STAGES:
            ran = tried(reproduce, name=f"repro {name}")(name, held.child)
            account.ran += ran
            account.current += [] if ran else [name]
        decided = json.loads(DECISION.read_text())["decision"]
        tried(keep, name="commit")(decided if "promote" in account.ran else "nothing to decide")
        if params.push:
            tried(push, name="push")(list(params.push))
    except Exception as error:
        said = sentence(f"{type(error).__name__}: {error}").rstrip(".")
        try:
            tried(publish, name="report")(account.page(said))
        except Exception as other:  # what failed first is what must be seen
            print(f"its page could not be published ({type(other).__name__})")
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
        print(rehearsal.rehearse(STAGES))
        return
    with prefect_api():
        if chosen.now:
            retrain()
            return
        bury(lock_is_ours=False)  # a run that is only called running would hold up all others
        on_schedule(retrain, chosen.cron, {"because": f"due by the schedule {chosen.cron}"})


if __name__ == "__main__":
    main(command)
