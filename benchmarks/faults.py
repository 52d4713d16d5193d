"""Breaks what the chain runs on while it runs, and shows what becomes of the run and of the next.

    python -m benchmarks.faults [--only NAME …]

PostgreSQL, S3, MLflow and Prefect run on loopback (`deploy.services`) for a small phantom set in a
temporary copy of the repository. Each fault comes in the middle of a stage; *back* says that the
server was started again after five seconds, *away* that it stayed away until the run had ended.
Prints a Markdown table; exit status 1 where a run ends without a clear sentence, the next one
fails, a flow stays "running" for ever, or data or champion changed.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from benchmarks.common import head, row, small_repository
from deploy.local import DVC, TUMORSEG, client_environment, scratch
from deploy.services import Profile, profile

CHAMPION = "SELECT version FROM registered_model_aliases WHERE alias = 'champion'"
RUNNING = "SELECT count(*) FROM flow_run WHERE state_type = 'RUNNING'"
PATIENCE_SECONDS = 600
RUN = [*TUMORSEG, "run"]
# Of the same flows as in `tumorseg run`, those that a fault is for: minutes are saved.
TRAIN = [*DVC, "repro", "--single-item", "train@unet-0"]
REGISTER = [*DVC, "repro", "--single-item", "--force", "register"]
STAGES = ("validate", "split", "augment", "train", "evaluate", "register", "promote", "package")
TITLES = {"postgres": "PostgreSQL", "s3": "S3", "mlflow": "MLflow", "prefect": "Prefect"}
MID_TRAINING = ("Beginning flow run", "epoch 5 ")
REGISTERING = ("Beginning flow run", "complete_run")


@dataclass
class Place:
    """A small repository, and the servers that it uses."""

    root: Path
    servers: Profile

    @property
    def log(self) -> Path:
        """What the last command printed."""
        return self.root.with_name("run.log")

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Starts a command in a process group of its own."""
        with self.log.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=client_environment(self.servers, self.root) | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, command: list[str]) -> tuple[int, str]:
        """Runs a command: its exit status and what it printed."""
        return self.start(command).wait(PATIENCE_SECONDS), self.printed()

    def printed(self) -> str:
        """What the last command printed."""
        return self.log.read_text(errors="replace")

    def kept(self) -> tuple[str, list[tuple[object, ...]]]:
        """What no fault may change: the data's digest, and the champion."""
        total = hashlib.sha256()
        for path in sorted((self.root / "data").rglob("*.*")):
            total.update(path.read_bytes())
        return total.hexdigest(), self.servers.query("mlflow", CHAMPION)

    def change(self, **common: object) -> None:
        """Sets keys of train.common in params.yaml, so that there is something to run."""
        path = self.root / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params["train"]["common"] |= common
        path.write_text(yaml.safe_dump(params))


@dataclass(frozen=True)
class Outcome:
    """What became of a run with a fault, and of the next.

    Attributes:
        status: Of the run that met the fault; None where it was killed.
        message: Its last sentence, if it failed.
        traceback: Whether it printed one.
        again: The next run's exit status; None where the first one came through.
        same: Whether data and champion were as before when the first run had failed.
        running: Flow runs that Prefect takes for running after all.
        resumed: Whether the rerun's training went on where the first one's ended.
    """

    status: int | None
    message: str
    traceback: bool
    again: int | None
    same: bool
    running: int
    resumed: bool

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        clear = self.status in (0, None) or bool(self.message and not self.traceback)
        return clear and self.again in (0, None) and self.same and not self.running


@contextmanager
def place() -> Iterator[Place]:
    """The servers, and a repository in which the whole job has run once.

    Raises:
        InputError: PostgreSQL is not installed.
    """
    with scratch() as folder, profile(folder) as servers:
        root = folder / "repository"
        root.mkdir()
        os.environ["PYTHONPATH"] = f"{root / 'src'}:{root}"
        small = {"train": 12, "valid": 5, "test": 5}
        epochs = {"epochs": 30, "early_stopping_patience": 30}
        small_repository(root, 32, small, batch_size=4, **epochs)
        made = Place(root, servers)
        status, printed = made.run(RUN)
        if status:
            sys.exit(f"the unbroken run failed:\n{printed[-4000:]}")
        yield made


def wait_for(process: subprocess.Popen[bytes], here: Place, *signs: str) -> None:
    """Waits until a command has printed all of these, one after the other."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        rest = here.printed()
        if all((rest := rest.partition(sign)[2]) for sign in signs):
            return
        time.sleep(0.05)
    sys.exit(f"no {signs} in the output:\n{here.printed()[-2000:]}")


def outcome(here: Place, status: int | None, before: object) -> Outcome:
    """Looks at what is left, and runs the whole job where the command failed."""
    printed, same = here.printed(), status == 0 or here.kept() == before
    again, more = (None, "") if status == 0 else here.run(RUN)
    if again:
        print(f"the next one failed:\n{more[-4000:]}", file=sys.stderr)
    lines = [line.strip() for line in printed.splitlines()]
    sentences = [line for line in lines if line.split(":")[0] in STAGES]
    return Outcome(
        status,
        sentences[-1] if status and sentences else "",
        "Traceback (most recent call last)" in printed,
        again,
        same,
        here.servers.query("prefect", RUNNING)[0][0],
        "going on after epoch" in more,
    )


def interrupt(
    here: Place, server: str | None, command: list[str], signs: tuple[str, ...], back: bool
) -> Outcome:
    """Kills a server in the middle of a stage; or the command itself, if `server` is None."""
    before = here.kept()
    process = here.start(command)
    try:
        wait_for(process, here, *signs)
        if server is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return outcome(here, None, before)
        away = here.servers.servers[server]
        away.kill()
        if back:
            time.sleep(5)
            away.start()
        status = process.wait(PATIENCE_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not back:
        away.start()
    return outcome(here, status, before)


CASES: dict[str, Callable[[Place], Outcome]] = {
    f"{TITLES[server]} killed in {step}, {'back' if back else 'away'}": partial(
        interrupt, server=server, command=command, signs=signs, back=back
    )
    for server, step, command, signs, back in (
        ("postgres", "train", TRAIN, MID_TRAINING, True),
        ("postgres", "train", TRAIN, MID_TRAINING, False),
        ("s3", "register", REGISTER, REGISTERING, True),
        ("s3", "register", REGISTER, REGISTERING, False),
        ("mlflow", "train", TRAIN, MID_TRAINING, True),
        ("prefect", "train", TRAIN, MID_TRAINING, True),
        ("prefect", "train", TRAIN, MID_TRAINING, False),
    )
}
CASES["tumorseg run killed in train"] = partial(
    interrupt, server=None, command=RUN, signs=MID_TRAINING, back=True
)


def provoke(here: Place, name: str, number: int) -> Outcome:
    """Runs one case on parameters that no earlier run had."""
    here.change(learning_rate=0.002 + number / 10_000)
    return CASES[name](here)


def main() -> int:
    """Prints a row a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(CASES), help="parts of the names")
    chosen = parser.parse_args()
    wanted = [name for name in CASES if any(part in name for part in chosen.only)]
    with place() as here:
        good = table(here, wanted)
    print(f"\n{good} of {len(wanted)} as they should be")
    return 0 if good == len(wanted) else 1


def table(here: Place, wanted: list[str]) -> int:
    """Prints a row a fault; how many are as they should be."""
    head("fault", "command", "message", "data, champion", "next run", "flows left", numbers=1)
    good = 0
    for number, name in enumerate(wanted, 1):
        began = time.monotonic()
        found = provoke(here, name, number)
        status = {0: "came through", None: "killed"}.get(found.status, "failed")
        status += f" ({time.monotonic() - began:.0f} s in all)"
        again = {0: "complete", None: "–"}.get(found.again, f"FAILED ({found.again})")
        again += ", training resumed" if found.resumed else ""
        message = found.message + (" TRACEBACK" if found.traceback else "")
        same = "as before" if found.same else "CHANGED"
        row(name, status, message or "–", same, again, found.running)
        good += found.good
    return good


if __name__ == "__main__":
    sys.exit(main())
