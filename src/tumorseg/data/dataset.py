"""What lies under data/, as DVC has recorded it."""

import os
import subprocess
import sys
from pathlib import Path

from tumorseg.core.errors import InputError

REMOTE = "TUMORSEG_DVC_REMOTE"  # a deployment's name for where its data lie


def dvc(*arguments: str) -> str:
    """Runs a DVC command and returns what it printed.

    Raises:
        InputError: It failed; the message is DVC's own.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"dvc {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def pull() -> None:
    """Fetches the data version that data.dvc names, from the remote in `REMOTE`, then from DVC's.

    Raises:
        InputError: Neither has it; the message is DVC's own.
    """
    if name := os.environ.get(REMOTE):
        try:
            dvc("pull", "--remote", name, "data.dvc")
            return
        except InputError as error:  # before the first push, only the repository's own has it
            why = " ".join(str(error).split())
            print(f"remote {name} did not give the data ({why}); asking DVC's own", flush=True)
    dvc("pull", "--quiet", "data.dvc")


def push() -> None:
    """Sends the data version to the remote in `REMOTE`, where it is set, else to DVC's default.

    Raises:
        InputError: It failed; the message is DVC's own.
    """
    name = os.environ.get(REMOTE)
    dvc("push", "--quiet", *(["--remote", name] if name else []), "data.dvc")


def refuse_to_lose(data: Path) -> None:
    """Raises InputError if data/ differs from what DVC has recorded in its cache."""
    record = data.with_name(f"{data.name}.dvc")
    if not data.exists() or not any(data.iterdir()):
        return
    if not record.exists() or dvc("status", record.name, "--json").strip() not in ("", "{}"):
        raise InputError(
            f"{data}/ holds changes that DVC has not recorded, and they would be lost: keep them "
            f"with `dvc add {data}`, or undo them with `dvc checkout --force {data}`"
        )
