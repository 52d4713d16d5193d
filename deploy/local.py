"""Runs the whole job on the server profile, its servers on loopback, and shows what they hold.

    make server-run
    python -m deploy.local [--experiment NAME] [--set KEY=VALUE …]

PostgreSQL keeps Prefect's and MLflow's tables, S3 the models and DVC's remote. The servers end with
the command, and what they held with them; the champion's bento stays, as after `tumorseg run`.
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.buckets import BUCKETS
from deploy.services import Profile, profile
from tumorseg.core import environment
from tumorseg.core.errors import InputError

TUMORSEG = [sys.executable, "-m", "tumorseg.cli"]
DVC = [sys.executable, "-m", "dvc"]
UNWANTED = "flow runs in another state"
FIGURES = (
    ("prefect", "flow runs completed", "flow_run WHERE state_type = 'COMPLETED'"),
    ("prefect", UNWANTED, "flow_run WHERE state_type <> 'COMPLETED'"),
    ("prefect", "task runs", "task_run"),
    ("prefect", "events", "events"),
    ("mlflow", "runs", "runs"),
    ("mlflow", "rows of metrics", "metrics"),
    ("mlflow", "registered versions", "model_versions"),
    ("mlflow", "champions", "registered_model_aliases WHERE alias = 'champion'"),
)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder that PostgreSQL's user may enter."""
    with tempfile.TemporaryDirectory(prefix="tumorseg-server-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def call(command: list[str], servers: Profile, root: Path) -> None:
    """Runs a command in a repository, as a client of the servers.

    Raises:
        InputError: It failed; its own message is above.
    """
    code = subprocess.run(command, cwd=root, env=client_environment(servers, root), check=False)
    if code.returncode:
        raise InputError(f"`{' '.join(command[2:])}` failed; its message is above")


def client_environment(servers: Profile, root: Path) -> dict[str, str]:
    """This process's environment, as a client of the servers in a repository."""
    path = {"PATH": environment.search_path()}
    return os.environ | environment.defaults(root) | servers.environment | path


def push_and_pull(servers: Profile, root: Path, elsewhere: Path) -> int:
    """Pushes all that DVC tracks, pulls it into an empty repository with no cache, and compares.

    Returns:
        How many files came, each equal to its original.

    Raises:
        InputError: One differs.
    """
    remote = ["--remote", servers.environment["TUMORSEG_DVC_REMOTE"]]
    call([*DVC, "push", *remote], servers, root)
    for name in ("dvc.yaml", "dvc.lock", "params.yaml", "data.dvc", ".dvcignore", ".dvc/config"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, elsewhere / name)
    subprocess.run(["git", "init", "--quiet"], cwd=elsewhere, check=True)
    call([*DVC, "pull", "--quiet", *remote], servers, elsewhere)
    came = [
        path.relative_to(elsewhere)
        for top in ("data", "artifacts", "reports")
        for path in (elsewhere / top).rglob("*")
        if path.is_file() and path.name != ".gitignore"
    ]
    for path in came:
        if not filecmp.cmp(root / path, elsewhere / path, shallow=False):
            raise InputError(f"{path}: what came back from S3 differs from what was pushed")
    return len(came)


def sqlite_written(root: Path, since: float) -> list[str]:
    """SQLite files under .state that were written since a moment, in seconds since the epoch."""
    state = root / environment.STATE
    found = [path for path in state.rglob("*.db") if path.stat().st_mtime >= since]
    return sorted(str(path.relative_to(state)) for path in found)


def report(servers: Profile, pulled: int, sqlite: list[str]) -> bool:
    """Prints what the servers hold, as a Markdown table; whether everything is where it belongs."""
    theirs = [name for name in sqlite if "mlflow" in name or name.startswith("prefect")]
    good = pulled > 0 and not theirs
    print("\n| where | what | |\n|---|---|--:|")
    for database, what, rest in FIGURES:
        count = servers.query(database, f"SELECT count(*) FROM {rest}")[0][0]
        print(f"| PostgreSQL: {database} | {what} | {count} |")
        good &= (count == 0) == (what == UNWANTED)
    for bucket in BUCKETS:
        count, size = servers.objects(bucket)
        print(f"| S3: {bucket} | objects | {count}, {size / 2**20:.1f} MiB |")
        good &= count > 0
    print(f"| DVC | files pulled into an empty repository, equal | {pulled} |")
    print(f"| SQLite | databases of Prefect or MLflow written | {', '.join(theirs) or 'none'} |")
    return good


def check_place(root: Path) -> None:
    """Refuses a folder whose results lie in servers other than these.

    Raises:
        InputError: It is no repository, or something has run there.
    """
    if not (root / "dvc.yaml").exists():
        raise InputError("there is no dvc.yaml here: change to the repository's root")
    if (root / "artifacts").exists() or (root / environment.STATE / "mlflow.db").exists():
        raise InputError(
            "results of this checkout lie in another MLflow, and what these servers hold ends with "
            "them: type it in a fresh clone, or after `make clean`"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("--experiment", help="a set of experiments.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    changes = ["--experiment", chosen.experiment] if chosen.experiment else []
    changes += [word for change in chosen.set for word in ("--set", change)]
    root, began = Path.cwd(), time.time()
    try:
        check_place(root)
        with scratch() as folder, profile(folder) as servers:
            for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "AWS_ENDPOINT_URL_S3"):
                print(f"{name}={servers.environment[name]}", flush=True)
            call([*TUMORSEG, "run", *changes], servers, root)
            pulled = push_and_pull(servers, root, folder / "elsewhere")
            if not report(servers, pulled, sqlite_written(root, began)):
                raise InputError("something is not where it belongs; see the table")
        print(f"\ntime: {time.time() - began:.0f} s")
    except InputError as error:
        sys.exit(f"deploy.local: {error}")


if __name__ == "__main__":
    main()
