"""The slices that were served lately, as the service recorded them."""

import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd

from tumorseg.core.errors import InputError
from tumorseg.monitoring.drift_reference import COLUMNS
from tumorseg.monitoring.statistics import TABLE, hour_of

READ = ["hour", "request", "confidence", "warned", *COLUMNS]
READ_ALL = f"SELECT {', '.join(READ)} FROM {TABLE} WHERE hour > ?"


def read_window(path: Path, digest: str, now: datetime, hours: int) -> pd.DataFrame:
    """Reads the rows of one model.

    Args:
        path: The file that the service writes, or a folder of such files, one a service; where
            there is none yet, no row was written.
        digest: The model's; slices that another one answered are left out.
        now: The end of the window, with its time zone.
        hours: Its length.

    Returns:
        A row a slice: the columns of the reference, `hour`, `request`, `confidence`, `warned`.

    Raises:
        InputError: A file is no record of the service.
    """
    since = hour_of(now - timedelta(hours=hours))
    rows = [_asked(f"{READ_ALL} AND digest = ?", file, since, digest) for file in _files(path)]
    filled = [table for table in rows if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=READ)


def count_of_others(path: Path, digest: str, now: datetime, hours: int) -> int:
    """How many slices of the same hours other models answered."""
    since = hour_of(now - timedelta(hours=hours))
    query = f"SELECT count(*) AS n FROM {TABLE} WHERE hour > ? AND digest != ?"
    return sum(int(_asked(query, file, since, digest)["n"].sum()) for file in _files(path))


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.db")) if path.is_dir() else [path]
    return [file for file in files if file.exists()]


def _asked(query: str, path: Path, since: str, digest: str) -> pd.DataFrame:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
            found = file.execute("SELECT name FROM sqlite_master WHERE name = ?", [TABLE])
            if found.fetchone() is None:
                return pd.DataFrame(columns=[*READ, "n"])
            return pd.read_sql_query(query, file, params=(since, digest))
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise InputError(
            f"{path}: cannot be read as the service's statistics ({error}); remove it, or set "
            "TUMORSEG_STATISTICS to what the service writes"
        ) from None
