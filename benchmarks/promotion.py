"""Kills a promotion and a rollback at each of their steps, starts the service, asks what it serves.

    python benchmarks/promotion.py [--only TEXT]

Works on toy networks in a temporary repository, with MLflow on SQLite, Prefect, and real bentos. A
process that does what the stages register, promote and package do (or `tumorseg rollback`) is ended
by SIGKILL at one of `STEPS`; then `tumorseg serve` starts, its `/version` is compared with the
registry's alias, and the same is typed again. Last, a rollback is timed. Prints Markdown tables;
exit status 1 where a digest differs or the rerun does not end as it should.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import toy_registry
from tumorseg.core import environment
from tumorseg.core.files import write_json
from tumorseg.core.prefect_server import free_port, prefect_server
from tumorseg.registry import history
from tumorseg.registry import versions as registry

REPOSITORY = Path(__file__).resolve().parents[1]
CANDIDATE = Path("artifacts/register/candidate.json")
CLI = [sys.executable, "-c", "from tumorseg.cli import main; main()"]
START_SECONDS = 120
# Job, step in words, and the function that is wrapped: killed before or after it does its work.
STEPS = [
    (
        "promote",
        "a version is made, but incomplete",
        "tumorseg.registry.versions:_download",
        "before",
    ),
    ("promote", "the version is complete", "tumorseg.registry.versions:register", "after"),
    ("promote", "both are fetched", "tumorseg.registry.gate:served_scores", "before"),
    ("promote", "the verdict is known", "tumorseg.registry.history:intend", "before"),
    ("promote", "it is recorded as intended", "tumorseg.registry.history:intend", "after"),
    ("promote", "figures and page are with it", "tumorseg.registry.history:attach", "after"),
    ("promote", "the challenger is verified", "tumorseg.registry.versions:promote", "before"),
    ("promote", "the alias is moved", "tumorseg.registry.versions:promote", "after"),
    ("promote", "it is recorded as done", "tumorseg.registry.history:close", "after"),
    ("promote", "decision.json is written", "pipelines.promote:write_json", "after"),
    ("promote", "the bento is about to be built", "tumorseg.registry.bento:build", "before"),
    ("promote", "the bento is built", "tumorseg.registry.bento:build", "after"),
    ("promote", "it is packaged", "tumorseg.registry.packaging:write_json", "after"),
    ("rollback", "it is recorded as intended", "tumorseg.registry.history:intend", "after"),
    ("rollback", "the version is verified", "tumorseg.registry.versions:promote", "before"),
    ("rollback", "the alias is moved", "tumorseg.registry.versions:promote", "after"),
    ("rollback", "the bento is built", "tumorseg.registry.bento:build", "after"),
    ("rollback", "it is packaged", "tumorseg.registry.packaging:write_json", "after"),
    ("rollback", "it is recorded as done", "tumorseg.registry.history:close", "after"),
]


def job(what: str, model: tuple[float, float], step: int | None) -> None:
    """The process that may be killed: registers, promotes and packages, or rolls back."""
    if step is not None:
        place, when = STEPS[step][2:]
        module, name = place.split(":")
        kill_at(importlib.import_module(module), name, when)
    if what == "rollback":
        from tumorseg.cli import main as command

        sys.argv = ["tumorseg", "rollback", "--reason", "a benchmark"]
        command()
        return
    from pipelines.package import package
    from pipelines.promote import promote

    root = Path.cwd()
    target, *_ = toy_registry.params(root)
    if not CANDIDATE.exists():  # as DVC does not run again what came to its end
        write_json(CANDIDATE, toy_registry.register(root, target, model))
    promote()
    package()


def kill_at(module: Any, name: str, when: str) -> None:
    """Lets a function of a module end the process, before or after its work."""
    work = getattr(module, name)

    def last(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            work(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, last)


def run(what: str, model: tuple[float, float], step: int | None = None) -> int:
    """Runs `job` in a process of its own; returns its exit status, −9 where it was killed."""
    told = json.dumps([what, model, step])
    command = [sys.executable, __file__, "--job", told]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"{what} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.returncode


@contextmanager
def serving(log: Path) -> Iterator[dict[str, Any]]:
    """Runs `tumorseg serve`; yields what `/version` answers and the seconds until it did."""
    port, start = free_port(0), time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*CLI, "serve", "--port", str(port)], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while True:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/version", timeout=5, trust_env=False)
                if answer.status_code == 200:
                    break
            except httpx.HTTPError:
                pass  # it is not up yet
            if process.poll() is not None or time.monotonic() - start > START_SECONDS:
                sys.exit(f"the service did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield answer.json()["model"] | {"seconds": time.monotonic() - start}
    finally:
        process.terminate()
        process.wait(30)


def champion() -> tuple[str, str]:
    """Version and digest of what the alias points to, its file checked."""
    target, *_ = toy_registry.params(Path.cwd())
    found = registry.champion(target.model_name, target.experiment)
    assert found is not None
    with tempfile.TemporaryDirectory() as scratch:
        info = registry.fetch(
            target.model_name, str(found.version), target.experiment, Path(scratch)
        )
    return info["version"], info["digest"]


def story() -> list[tuple[str, str]]:
    """What was decided, and whether it was carried out."""
    target, *_ = toy_registry.params(Path.cwd())
    return [(event.what, event.state) for event in history.events(target)]


CHANGING = ("mlflow.db", "artifacts", ".state/bentoml")


def copy(source: Path, to: Path) -> None:
    """Puts what a promotion changes from one folder into another."""
    for name in CHANGING:
        shutil.rmtree(to / name, ignore_errors=True)
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, to / name, symlinks=True)
        else:
            shutil.copyfile(source / name, to / name)


def killed(number: int, before: Path, log: Path) -> bool:
    """Prints the row of one step; returns whether all went well."""
    what, words, *_ = STEPS[number]
    copy(before, Path.cwd())
    known = story()
    if run(what, toy_registry.GOOD, number) == 0:
        sys.exit(f"{what} did not pass through the step {words!r}")
    version, digest = champion()
    with serving(log) as served:
        pass
    equal = served["digest"] == digest
    # A rollback that was recorded as done is over; typed again it would go one further.
    if not (what == "rollback" and words == "it is recorded as done"):
        run(what, toy_registry.GOOD)
    (after, _), told = champion(), story()
    once = told == [*known, ("promoted" if what == "promote" else "rollback", "done")]
    print(
        f"| {what} | {words} | {version} | `{served['digest'][:12]}` | `{digest[:12]}` | "
        f"{'yes' if equal else 'NO'} | {served['seconds']:.0f} s | champion {after}, "
        f"{'recorded once' if once else f'story: {told[len(known) :]}'} |",
        flush=True,
    )
    return equal and once


def timed_rollback(before: Path, log: Path) -> bool:
    """Rolls back while a service runs; prints the times and what is served before and after."""
    copy(before, Path.cwd())
    with serving(log) as old:
        start = time.monotonic()
        done = subprocess.run(
            [*CLI, "rollback", "--reason", "a benchmark"], capture_output=True, text=True
        )
        took = time.monotonic() - start
    print(f"\n```\n{done.stdout}{done.stderr}```\n")
    with serving(log) as new:
        pass
    _, digest = champion()
    print("| rollback | |\n|---|---|")
    print(f"| served before | version {old['version']}, `{old['digest'][:12]}` |")
    print(f"| the whole command | {took:.1f} s |")
    print(f"| from `tumorseg serve` to the first answer | {new['seconds']:.1f} s |")
    print(f"| served after | version {new['version']}, `{new['digest'][:12]}` |")
    return done.returncode == 0 and new["digest"] == digest != old["digest"]


def main() -> int:
    """Prints a row a step, then the timed rollback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a row, such as 'rollback: the alias'")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        what, model, step = json.loads(chosen.job)
        job(what, tuple(model), step)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "repository")
        root.mkdir()
        os.chdir(root)
        (root / environment.STATE).mkdir()
        os.environ |= environment.defaults(root)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root / 'mlflow.db'}"
        os.environ["PYTHONPATH"] = f"{REPOSITORY / 'src'}:{REPOSITORY}"
        toy_registry.write_repository(root)
        one, two, log = (Path(temporary, name) for name in ("one", "two", "serve.log"))
        with prefect_server():
            run("promote", toy_registry.POOR)
            (root / CANDIDATE).unlink()
            copy(root, one)
            run("promote", toy_registry.GOOD)
            copy(root, two)
            print("| killed | when | alias | served | registry | equal | ready after | again |")
            print("|---|---|---|---|---|---|---|---|")
            good = [
                killed(number, one if step[0] == "promote" else two, log)
                for number, step in enumerate(STEPS)
                if chosen.only in f"{step[0]}: {step[1]}"
            ]
            good.append(timed_rollback(two, log))
    print(f"\n{sum(good)} of {len(good)} as they should be")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
