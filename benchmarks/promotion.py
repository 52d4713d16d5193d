"""Kills promotions and rollbacks, and asks on which version the alias is and what is packaged.

    python benchmarks/promotion.py [--moments 10] [--seed 0]

Works on toy networks in a temporary repository, with MLflow on SQLite, Prefect, and real bentos. A
process that does what the stages register, promote and package do (or `tumorseg rollback`) is ended
by SIGKILL after each of its writes to the registry, and at random moments. Then the version with
the alias is downloaded and its digest checked, the champion is packaged as `tumorseg serve` would,
and the same command is run again. Last, a rollback is timed while a service runs. Prints Markdown
tables; exit status 1 where the alias is on no complete version or the rerun does not end as it
should.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from mlflow.tracking import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import toy_registry
from tests.support.serving_process import ready
from tumorseg.core import environment
from tumorseg.core.files import write_json
from tumorseg.core.prefect_server import free_port, prefect_server
from tumorseg.registry import bento, versions
from tumorseg.registry.decisions import history

REPOSITORY = Path(__file__).resolve().parents[1]
CANDIDATE = Path("artifacts/register/candidate.json")
CLI = [sys.executable, "-c", "from tumorseg.cli import main; main()"]
NAME = "tumorseg"
WRITES = {"promote": 6, "rollback": 4}  # two of registering, then description, tag, alias, bento
CHANGING = ("mlflow.db", "artifacts", ".state/bentoml")  # what a promotion changes


def job(what: str, model: tuple[float, float], writes: int) -> None:
    """Registers, promotes and packages, or rolls back; killed after so many writes, if not 0."""
    left = itertools.count(writes - 1, -1)

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = work(*args, **kwargs)
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in ("update_model_version", "set_model_version_tag", "set_registered_model_alias"):
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
    bento.build = counted(bento.build)
    if what == "rollback":
        from tumorseg.cli import main as command

        sys.argv = ["tumorseg", "rollback", "--reason", "a benchmark"]
        command()
        return
    from pipelines.package import package
    from pipelines.promote import promote

    target, *_ = toy_registry.params(Path.cwd())
    if not CANDIDATE.exists():  # as DVC does not run again what came to its end
        write_json(CANDIDATE, toy_registry.register(Path.cwd(), target, model))
    promote()
    package()


def run(
    what: str,
    model: tuple[float, float] = toy_registry.GOOD,
    writes: int = 0,
    seconds: float | None = None,
) -> bool:
    """Runs `job` in a process of its own; False if it was killed after writes or seconds."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--job", json.dumps([what, model, writes])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"{what} failed:\n{output[-4000:]}")
    return process.returncode == 0


def restore(folder: Path, to: Path) -> None:
    """Copies what a promotion changes from one folder into another."""
    for name in CHANGING:
        shutil.rmtree(to / name, ignore_errors=True)
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copyfile
        copy(folder / name, to / name)


def champion() -> str:
    """The version that has the alias, its file verified."""
    found = versions.champion(NAME)
    assert found is not None
    with tempfile.TemporaryDirectory() as scratch:
        versions.fetch(NAME, str(found.version), Path(scratch))
    return str(found.version)


def killed(what: str, start: Path, writes: int = 0, seconds: float | None = None) -> bool:
    """Prints the row of one kill; returns whether all went well."""
    restore(start, Path.cwd())
    before, decisions = champion(), len(history(NAME))
    while run(what, writes=writes, seconds=seconds):
        if seconds is None:
            sys.exit(f"{what} has fewer than {writes} writes")
        seconds *= 0.8  # it ended before
        restore(start, Path.cwd())
    alias, recorded = champion(), len(history(NAME)) - decisions
    packaged = bento.ensure_current_bento()["version"] == alias
    # A rollback whose alias moved and whose bento is built is over: the next goes one further.
    if not (what == "rollback" and alias != before):
        run(what)
    after = champion()
    made = history(NAME)[decisions:]
    once = [one.decision for one in made] == ["promoted" if what == "promote" else "rollback"]
    good = packaged and once and after == made[-1].serving != before
    moment = f"write {writes}" if seconds is None else f"{seconds:.1f} s"
    print(
        f"| {what} | {moment} | {recorded} "
        f"| {before} → {alias} | {'yes' if packaged else 'NO'} | {after} "
        f"| {'once' if once else 'NOT ONCE'} | {'yes' if good else 'NO'} |",
        flush=True,
    )
    return good


@contextmanager
def serving(log: Path) -> Iterator[dict[str, Any]]:
    """Runs `tumorseg serve`; yields what `/version` answers and the seconds until it did."""
    port, start = free_port(0), time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*CLI, "serve", "--port", str(port)], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        if not ready(process, url, 120):
            sys.exit(f"the service did not start:\n{log.read_text()[-4000:]}")
        seconds = time.monotonic() - start
        yield httpx.get(f"{url}/version", timeout=5).json()["model"] | {"seconds": seconds}
    finally:
        process.terminate()
        process.wait(30)


def timed_rollback(start: Path, log: Path) -> bool:
    """Rolls back while a service runs; prints the times and what is served before and after."""
    restore(start, Path.cwd())
    with serving(log) as old:
        began = time.monotonic()
        run("rollback")
        took = time.monotonic() - began
    with serving(log) as new:
        pass
    print("\n| rollback | |\n|---|---|")
    print(f"| served before | version {old['version']}, `{old['digest'][:12]}` |")
    print(f"| the whole command | {took:.1f} s |")
    print(f"| from `tumorseg serve` to readiness | {new['seconds']:.1f} s |")
    print(f"| served after | version {new['version']}, `{new['digest'][:12]}` |")
    return bool(new["version"] == champion() != old["version"])


def main() -> int:
    """Prints one row per kill, then the timed rollback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=10, help="random ones, besides each write")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        job(*json.loads(chosen.job))
        return 0
    rng = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "repository")
        root.mkdir()
        os.chdir(root)
        (root / environment.STATE).mkdir()
        os.environ |= environment.defaults(root)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root / 'mlflow.db'}"
        os.environ["PYTHONPATH"] = f"{REPOSITORY / 'src'}:{REPOSITORY}"
        toy_registry.write_repository(root)
        starts = {what: Path(temporary, what) for what in ("promote", "rollback")}
        with prefect_server():
            run("promote", toy_registry.POOR)
            (root / CANDIDATE).unlink()
            restore(root, starts["promote"])
            began = time.monotonic()
            run("promote")
            longest = {"promote": time.monotonic() - began}
            restore(root, starts["rollback"])
            began = time.monotonic()
            run("rollback")
            longest["rollback"] = time.monotonic() - began
            print("| killed | after | recorded | alias | packaged | rerun | record | good |")
            print("|---|--:|--:|---|---|--:|---|---|")
            good = [
                killed(what, starts[what], writes=number)
                for what, writes in WRITES.items()
                for number in range(1, writes + 1)
            ]
            for number in range(chosen.moments):
                what = ("promote", "rollback")[number % 2]
                # The first half of a run is imports, during which nothing can go wrong.
                seconds = rng.uniform(0.5, 1.0) * longest[what]
                good.append(killed(what, starts[what], seconds=seconds))
            good.append(timed_rollback(starts["rollback"], Path(temporary, "serve.log")))
    print(f"\n{sum(good)} of {len(good)} as they should be")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
