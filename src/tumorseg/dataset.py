"""What lies under data/: put there, recorded by DVC, and never lost on the way."""

import shutil
import subprocess
import sys
from pathlib import Path

from tumorseg import coco
from tumorseg.errors import InputError

KAGGLE = "pkdarabi/brain-tumor-image-dataset-semantic-segmentation"


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


def use(folder: Path, data: Path = Path("data")) -> int:
    """Puts a copy of a folder under data/ and records it with `dvc add`.

    Args:
        folder: Holds train, valid and test, each with images and `_annotations.coco.json`.
        data: The folder that DVC tracks, in the repository's root.

    Returns:
        The number of images that the annotations list.

    Raises:
        InputError: The folder has another layout, or data/ holds changes that DVC has not recorded
            and that would be lost.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder")
    if folder.resolve() == data.resolve():
        raise InputError(f"{folder}: is in use already; record changes to it with `dvc add data`")
    images = sum(len(coco.read_split(folder / split)) for split in coco.SPLITS)
    refuse_to_lose(data)
    incoming, outgoing = data.with_name(f".{data.name}.new"), data.with_name(f".{data.name}.old")
    for leftover in (incoming, outgoing):
        shutil.rmtree(leftover, ignore_errors=True)
    for split in coco.SPLITS:
        # copyfile, not copy2: a read-only source must not make a folder that nobody can replace
        shutil.copytree(folder / split, incoming / split, copy_function=shutil.copyfile)
        (incoming / split).chmod(0o755)
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
    return images


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
