"""A folder in any known format becomes the data set under data/."""

import shutil
from pathlib import Path

from tumorseg.core.errors import InputError
from tumorseg.data.dataset import dvc, refuse_to_lose
from tumorseg.importers import Options, Summary, import_folder

KAGGLE = "pkdarabi/brain-tumor-image-dataset-semantic-segmentation"


def use(
    folder: Path,
    data: Path = Path("data"),
    kind: str | None = None,
    options: Options | None = None,
    groups: Path | None = None,
) -> Summary:
    """Puts a folder under data/ in the project's layout and records it with `dvc add`.

    Args:
        folder: In a format that `tumorseg.importers` reads; one that has the layout is copied.
        data: The folder that DVC tracks, in the repository's root.
        kind: The importer's name; None to look.
        options: How to cut volumes.
        groups: A CSV file of patients, see `tumorseg.importers.groups.give`.

    Returns:
        What was imported.

    Raises:
        InputError: The folder cannot be imported, or data/ holds changes that DVC has not recorded
            and that would be lost.
    """
    if folder.resolve() == data.resolve():
        raise InputError(f"{folder}: is in use already; record changes to it with `dvc add data`")
    refuse_to_lose(data)
    incoming, outgoing = data.with_name(f".{data.name}.new"), data.with_name(f".{data.name}.old")
    for leftover in (incoming, outgoing):
        shutil.rmtree(leftover, ignore_errors=True)
    summary = import_folder(folder, incoming, kind, options, groups)
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


def download_from_kaggle() -> Path:
    """Downloads the published data set with kagglehub into its cache.

    Raises:
        InputError: Kaggle cannot be reached or asks for credentials.
    """
    import kagglehub  # only here: it is slow to import and nothing else needs it

    try:
        return Path(kagglehub.dataset_download(KAGGLE))
    except Exception as error:  # of kagglehub, requests or the system
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"Kaggle did not send {KAGGLE} ({type(error).__name__}: {reason}). Where it asks who "
            "you are, create a token at https://www.kaggle.com/settings and set KAGGLE_USERNAME "
            "and KAGGLE_KEY; where it cannot be reached, download the set elsewhere, unpack it, "
            "and type `tumorseg data use FOLDER`"
        ) from None
