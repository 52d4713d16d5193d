"""Kills promotions and rollbacks at random moments, runs them again, and compares the results.

    PYTHONPATH=. python benchmarks/promotion.py [--kills 20] [--seed 0]

Works on toy networks in a temporary repository, with MLflow on SQLite, Prefect, and real bentos.
It kills a process that runs the stages register, promote and package, and `tumorseg rollback`, in
turns. After each kill the file of the version with the alias is verified, the champion is packaged
as `tumorseg serve` would, and the same command is run again. Prints a Markdown table; exit status 1
where the alias was on no complete version, or the result differs from that of an unbroken run.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from common import head, row, run, workplace

from tests.support import toy_registry
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.registry import bento, versions
from tumorseg.registry.decisions import history

CANDIDATE = Path("artifacts/register/candidate.json")
CLI = [sys.executable, "-c", "from tumorseg.cli import main; main()"]
NAME = "tumorseg"
COMMANDS = {
    "promotion": [sys.executable, __file__, "--job", "GOOD"],
    "rollback": [*CLI, "rollback", "--reason", "a benchmark"],
}
CHANGING = (".state/mlflow.db", "artifacts", ".state/bentoml")  # what a promotion changes


def job(model: tuple[float, float]) -> None:
    """Registers, promotes and packages a toy network."""
    from pipelines.package import package
    from pipelines.promote import promote

    if not CANDIDATE.exists():  # as DVC does not repeat a stage that has ended
        target, *_ = toy_registry.params(Path.cwd())
        write_json(CANDIDATE, toy_registry.register(Path.cwd(), target, model))
    promote()
    package()


def complete(command: list[str]) -> float:
    """Runs a command to its end, and returns its seconds."""
    start = time.monotonic()
    status, printed = run(command)
    if status:
        sys.exit(f"{command[-1]} failed:\n{printed[-4000:]}")
    return time.monotonic() - start


def restore(folder: Path, to: Path) -> None:
    """Copies what a promotion changes from one folder into another."""
    for name in CHANGING:
        shutil.rmtree(to / name, ignore_errors=True)
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copyfile
        copy(folder / name, to / name)


def champion() -> str:
    """The digest of the version that has the alias, its file verified."""
    found = versions.champion(NAME)
    if found is None:
        raise InputError("no version has the alias")
    with tempfile.TemporaryDirectory() as scratch:
        return str(versions.fetch(NAME, str(found.version), Path(scratch))["digest"])


def result() -> tuple[str, str, list[str]]:
    """Digests of the champion and of what is packaged, and all decisions."""
    return champion(), bento.ensure_current_bento()["digest"], [d.decision for d in history(NAME)]


def killed(what: str, start: Path, seconds: float, expected: object) -> bool:
    """Prints the row of one kill; returns whether all went well."""
    restore(start, Path.cwd())
    before = champion()
    while run(COMMANDS[what], seconds=seconds)[0] is not None:  # it ended before
        seconds *= 0.8
        restore(start, Path.cwd())
    try:
        alias = champion()
        packaged = bento.ensure_current_bento()["digest"] == alias
        # A rollback whose alias moved and whose bento is built is over: the next goes one further.
        if what == "promotion" or alias == before:
            complete(COMMANDS[what])
        good = packaged and result() == expected
        moved = "before" if alias == before else "after"
        row(what, f"{seconds:.1f} s", f"complete, as {moved}", "equal" if good else "DIFFERENT")
    except InputError as error:
        row(what, f"{seconds:.1f} s", f"BROKEN: {error}", "–")
        return False
    return good


def main() -> int:
    """Prints one row per kill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        job(getattr(toy_registry, chosen.job))
        return 0
    rng, starts, longest, expected = random.Random(chosen.seed), {}, {}, {}
    with workplace() as root:
        toy_registry.write_repository(root)
        complete([*COMMANDS["promotion"][:-1], "POOR"])
        CANDIDATE.unlink()
        for what, command in COMMANDS.items():
            starts[what] = root.with_name(what)
            restore(root, starts[what])
            longest[what] = complete(command)
            expected[what] = result()
        head("killed", "after", "alias", "result after the rerun")
        good = 0
        for number in range(chosen.kills):
            what = list(COMMANDS)[number % 2]
            # The first half of a run is imports, during which nothing can go wrong.
            seconds = rng.uniform(0.5, 1.0) * longest[what]
            good += killed(what, starts[what], seconds, expected[what])
    print(f"\n{good} of {chosen.kills} as they should be")
    return 0 if good == chosen.kills else 1


if __name__ == "__main__":
    sys.exit(main())
