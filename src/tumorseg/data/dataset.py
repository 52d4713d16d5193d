"""What lies under data/: put there, recorded by DVC, and never lost on the way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorseg.core import processes
from tumorseg.core.errors import InputError
from tumorseg.core.files import FULL, ended_if_full, write_json

if TYPE_CHECKING:  # the readers of NIfTI and DICOM take seconds to import
    from tumorseg.importers import Options, Summary

REMOTE = "TUMORSEG_DVC_REMOTE"  # a deployment's name for where its data lie
KAGGLE = "pkdarabi/brain-tumor-image-dataset-semantic-segmentation"


def dvc(*arguments: str) -> str:
    """Runs a DVC command and returns what it printed.

    Raises:
        InputError: It failed; the message is DVC's own.
    """
    forget_ended()
    with (
        subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ended_if_full(process) as full,
    ):
        printed, told = process.communicate()
    if process.returncode:
        why = FULL if full.is_set() else told.strip() or printed.strip()
        raise InputError(f"dvc {arguments[0]}: {why}")
    return printed


def forget_ended(table: Path = Path(".dvc/tmp/rwlock")) -> None:
    """Drops from DVC's table of who works on what the processes that have ended.

    DVC does so itself, but takes a killed process for alive until its parent has asked after it;
    in a container without an init process nobody ever does.
    """

    def alive(user: Any) -> bool:
        return bool(user) and bool(processes.process(int(user["pid"])).began)

    try:
        known = json.loads(table.read_text())
        kept = {
            "read": {
                path: left
                for path, users in known["read"].items()
                if (left := [user for user in users if alive(user)])
            },
            "write": {path: user for path, user in known["write"].items() if alive(user)},
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # there is none yet, or it is another version's: DVC will say what it makes of it
    if kept != known:
        write_json(table, kept)


def pull() -> None:
    """Fetches the data version that data.dvc names, from the remote in `REMOTE`, then from DVC's.

    Raises:
        InputError: Neither has it; the message is DVC's own.
    """
    named = _named_remote()
    if named:
        try:
            dvc("pull", *named, "data.dvc")
            return
        except InputError as error:  # before the first push, only the repository's own has it
            why = " ".join(str(error).split())
            print(f"remote {named[-1]} did not give the data ({why}); asking DVC's own", flush=True)
    dvc("pull", "--quiet", "data.dvc")


def push() -> None:
    """Sends the data version to the remote in `REMOTE`, where it is set, else to DVC's default.

    Raises:
        InputError: It failed; the message is DVC's own.
    """
    dvc("push", "--quiet", *_named_remote(), "data.dvc")


def _named_remote() -> list[str]:
    name = os.environ.get(REMOTE)
    return ["--remote", name] if name else []


def use(
    folder: Path,
    data: Path = Path("data"),
    kind: str | None = None,
    options: "Options | None" = None,
) -> "Summary":
    """Puts a folder under data/ in the project's layout and records it with `dvc add`.

    Args:
        folder: In a format that `tumorseg.importers` reads; one that has the layout is copied.
        data: The folder that DVC tracks, in the repository's root.
        kind: The importer's name; None to look.
        options: How to cut volumes.

    Returns:
        What was imported.

    Raises:
        InputError: The folder cannot be imported, or data/ holds changes that DVC has not recorded
            and that would be lost.
    """
    from tumorseg.importers import import_folder

    if folder.resolve() == data.resolve():
        raise InputError(f"{folder}: is in use already; record changes to it with `dvc add data`")
    refuse_to_lose(data)
    incoming, outgoing = data.with_name(f".{data.name}.new"), data.with_name(f".{data.name}.old")
    for leftover in (incoming, outgoing):
        shutil.rmtree(leftover, ignore_errors=True)
    summary = import_folder(folder, incoming, kind, options)
    if data.exists():
        data.rename(outgoing)
    incoming.rename(data)
    try:
        dvc("add", data.name)
    except InputError:
        shutil.rmtree(data)
        if outgoing.exists():
            outgoing.rename(data)
        raise
    shutil.rmtree(outgoing, ignore_errors=True)
    return summary


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


def download_from_kaggle() -> Path:
    """Downloads the published data set with kagglehub into its cache.

    Raises:
        InputError: Kaggle cannot be reached or asks for credentials.
    """
    import kagglehub  # only here: it is slow to import and nothing else needs it
    import requests
    from kagglehub import exceptions

    refused = (
        exceptions.CredentialError,
        exceptions.KaggleApiHTTPError,
        exceptions.UnauthenticatedError,
    )
    try:
        return Path(kagglehub.dataset_download(KAGGLE))
    except refused as error:
        raise InputError(
            f"Kaggle refused the download of {KAGGLE}: create a token at "
            "https://www.kaggle.com/settings and set KAGGLE_USERNAME and KAGGLE_KEY, or save it as "
            f"~/.kaggle/kaggle.json ({str(error).splitlines()[0]})"
        ) from None
    except (requests.RequestException, OSError) as error:
        raise InputError(
            f"Kaggle cannot be reached ({error.__class__.__name__}): download {KAGGLE} elsewhere, "
            "unpack it, and type `tumorseg data use FOLDER`"
        ) from None
