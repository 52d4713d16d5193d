"""Drift: whether served slices are still like those that the model was trained on.

The two-sample Kolmogorov-Smirnov test bounds the distance of two empirical distribution functions
of equal distributions by a critical value d. Equivalently, the quantile at p of the served slices
lies between the training quantiles at p - d and p + d. The level of the test is divided by the
number of statistics.

Slices of one patient, volume or hour are alike. N slices of groups of m count as
N / (1 + (m - 1) × correlation within groups) independent ones (Kish's design effect).
"""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kstwo, rankdata

from tumorseg.core.errors import InputError
from tumorseg.core.params import DriftParams
from tumorseg.imaging.preprocess import Grey
from tumorseg.monitoring.ood import DIGITS, METHOD, NAMES, statistics
from tumorseg.monitoring.statistics import TABLE, hour_of

FILE = "reference.json"  # among the artifacts of the run in which the model was trained
DRIFT, NONE, TOO_FEW = "drift", "no drift shown", "too few slices"
AREA = "area_fraction"
COLUMNS = (*NAMES, AREA)
LEVELS = np.linspace(0, 1, 201)  # of the quantiles of a reference
AT = [round(0.05 * step, 2) for step in range(1, 20)]  # those that are compared
SHOWN = (0.05, 0.5, 0.95)
_READ = ["hour", "request", "confidence", "warned", *COLUMNS]
_SLACK = 1e-3  # added to each spread; some statistics hardly vary at all
_MAX_NOTICEABLE = 0.5  # of d: above, a shift of half of the slices would go unnoticed


def reference(
    greys: Iterable[Grey],
    groups: ArrayLike,
    side: int,
    areas: ArrayLike,
    area_groups: ArrayLike,
) -> dict[str, Any]:
    """Describes each column by its quantiles; no slice's own values are in it.

    Args:
        greys: The N training and validation slices, uint8, shape (S, S) each.
        groups: The group of each, shape (N,).
        side: Of the grid on which statistics are taken, in pixels: `inputs.side` of model.json.
        areas: The share of each validation slice that is predicted as tumour, shape (M,).
        area_groups: The group of each, shape (M,).

    Returns:
        Ready for JSON; `load` documents it.
    """
    rows = np.stack([statistics_of(grey, side) for grey in greys])
    columns = {
        name: describe_column(column, groups) for name, column in zip(NAMES, rows.T, strict=True)
    }
    columns[AREA] = describe_column(np.asarray(areas, float), area_groups)
    return {"method": METHOD, "side": side, "columns": columns}


def statistics_of(grey: Grey, side: int) -> NDArray[np.float64]:
    """The statistics of a slice, uint8, shape (H, W), rounded as the service records them."""
    return statistics(grey, side).round(DIGITS)


def describe_column(values: NDArray[np.float64], groups: ArrayLike) -> dict[str, Any]:
    """Describes one statistic: its values and the group of each slice, both of shape (N,)."""
    quantiles = np.quantile(values, LEVELS)
    return {
        "slices": len(values),
        "effective": round(len(values) / design_effect(values, groups), 2),
        "spread": round(float(values.std()) + _SLACK, 6),
        "quantiles": [round(float(value), 6) for value in quantiles],
    }


def design_effect(values: ArrayLike, groups: ArrayLike) -> float:
    """Kish's design effect: how many slices count as one independent slice, from 1 to N.

    The correlation within groups is that of ranks, from a one-way analysis of variance.

    Args:
        values: Of one statistic, shape (N,).
        groups: The group of each slice, shape (N,).
    """
    ranks = rankdata(values)
    _, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member)
    slices, number = len(ranks), len(sizes)
    if number == slices:
        return 1.0
    if number < 2:
        return float(slices)
    means = np.bincount(member, ranks) / sizes
    between = (sizes * (means - ranks.mean()) ** 2).sum() / (number - 1)
    within = ((ranks - means[member]) ** 2).sum() / (slices - number)
    usual = (slices - (sizes**2).sum() / slices) / (number - 1)
    total = between + (usual - 1) * within
    correlation = (between - within) / total if total > 0 else 0.0  # of equal values, none
    return float(np.clip(1 + ((sizes**2).sum() / slices - 1) * correlation, 1, slices))


def load(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Checks a reference, and returns its columns: statistic → its description.

    Each has `slices`, `effective` (how many independent ones they are worth), `spread` (a standard
    deviation) and `quantiles` at `LEVELS`.

    Raises:
        InputError: It is of another version of the statistics.
    """
    columns: dict[str, dict[str, Any]] = found.get("columns", {})
    if found.get("method") != METHOD or tuple(columns) != COLUMNS:
        raise InputError(
            f"{FILE} of the served model is not what this version knows as {METHOD}: run "
            "`dvc repro --force register`"
        )
    return columns


def read_window(path: Path, digest: str, now: datetime, hours: int) -> tuple[pd.DataFrame, int]:
    """Reads the slices that were served lately, as the service recorded them.

    Args:
        path: The file that the service writes, or a folder of such files, one per service; it need
            not exist yet.
        digest: The model's; slices of other models are left out.
        now: The end of the window, with its time zone.
        hours: Its length.

    Returns:
        One row per slice: the columns of the reference, `hour`, `request`, `confidence`, `warned`;
        and how many slices of other models were left out.

    Raises:
        InputError: A file cannot be read.
    """
    files = sorted(path.glob("*.db")) if path.is_dir() else [path]
    query = f"SELECT digest, {', '.join(_READ)} FROM {TABLE} WHERE hour > ?"
    tables = [pd.DataFrame(columns=["digest", *_READ])]
    for file in filter(Path.exists, files):
        try:
            with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as base:
                since = hour_of(now - timedelta(hours=hours))
                tables.append(pd.read_sql_query(query, base, params=(since,)))
        except (sqlite3.Error, pd.errors.DatabaseError) as error:
            raise InputError(
                f"{file}: cannot be read as the service's statistics ({error}); remove it, or set "
                "TUMORSEG_STATISTICS to what the service writes"
            ) from None
    rows = pd.concat([t for t in tables if len(t)] or tables, ignore_index=True)
    ours = rows["digest"] == digest
    return rows.loc[ours, _READ].reset_index(drop=True), int((~ours).sum())


def compare(
    window: pd.DataFrame, columns: Mapping[str, Mapping[str, Any]], params: DriftParams
) -> dict[str, Any]:
    """Compares the window with the reference.

    Args:
        window: From `read_window`.
        columns: From `load`.
        params: The section.

    Returns:
        Ready for JSON: `verdict` (drift, no drift shown or too few slices), `reason` where too few,
        the counts, and `columns`, one entry per statistic, the most moved first: `outside` (whether
        a quantile is outside its band), `moved` (the greatest shift of a quantile, in standard
        deviations of training), `effective` (independent slices), `noticeable` (d), `training` and
        `window` (the quantiles at `SHOWN`) and `bands` (lower and upper bound of each quantile of
        `AT`, None where there is none).
    """
    result: dict[str, Any] = {
        "verdict": TOO_FEW,
        "slices": len(window),
        "requests": int(window["request"].nunique()),
        "hours": int(window["hour"].nunique()),
        "since": None if window.empty else f"{window['hour'].min()}:00Z",
        "warned": _rounded(window["warned"].mean()),
        "area_fraction": _rounded(window[AREA].mean()),
        "confidence": _rounded(window["confidence"].astype(float).mean()),
        "columns": [],
    }
    groups = min(result["requests"], result["hours"])
    if len(window) < params.min_rows or groups < params.min_groups:
        return result | {
            "reason": f"at least {params.min_rows} in {params.min_groups} of each are needed"
        }
    found = [_column(window, name, columns[name], params) for name in COLUMNS]
    if np.median([column["noticeable"] for column in found]) > _MAX_NOTICEABLE:
        effective = np.median([column["effective"] for column in found])
        return result | {
            "reason": f"slices of a request or hour are so alike that they count as {effective:.0f}"
        }
    found.sort(key=lambda column: (not column["outside"], -column["moved"]))
    verdict = DRIFT if any(column["outside"] for column in found) else NONE
    return result | {"verdict": verdict, "columns": found}


def _column(
    window: pd.DataFrame, name: str, known: Mapping[str, Any], params: DriftParams
) -> dict[str, Any]:
    values = window[name].to_numpy(float)
    # A client may send a patient's slices one by one: they have the hour in common.
    effect = max(design_effect(values, window[group]) for group in ("request", "hour"))
    effective = len(values) / effect
    both = effective * known["effective"] / (effective + known["effective"])
    d = float(kstwo.isf(params.alpha / len(COLUMNS), max(1, round(both))))
    training, at = np.array(known["quantiles"]), np.array(AT)
    room = params.tolerance * known["spread"]
    observed = np.quantile(values, at)
    usual = np.interp(at, LEVELS, training)
    # The outer one of two known quantiles, so that the band is never too narrow.
    last = len(LEVELS) - 1
    first = np.floor((at - d) * last + 1e-9).astype(int)
    end = np.ceil((at + d) * last - 1e-9).astype(int)
    low = np.where(first >= 0, training[first.clip(0)] - room, -np.inf)
    high = np.where(end <= last, training[end.clip(max=last)] + room, np.inf)
    return {
        "name": name,
        "outside": bool(((observed < low) | (observed > high)).any()),
        "moved": _rounded(np.abs(observed - usual).max() / known["spread"]),
        "effective": round(effective, 1),
        "noticeable": round(d, 3),
        "training": [_rounded(np.interp(p, LEVELS, training)) for p in SHOWN],
        "window": [_rounded(np.quantile(values, p)) for p in SHOWN],
        "bands": [[_rounded(bound) for bound in pair] for pair in zip(low, high, strict=True)],
    }


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def sentence(result: dict[str, Any]) -> str:
    """The verdict in words.

    Args:
        result: From `compare`; `others`, where given, is how many slices other models answered.
    """
    served = f"{result['slices']} slices served since {result['since']}"
    columns, others = result["columns"], result.get("others", 0)
    if result["verdict"] == TOO_FEW:
        hint = (
            f" Other models answered {others} slices: restart a running service, so that it takes "
            "the packaged model."
        )
        return (
            f"Too few slices: {result['slices']} slices in {result['requests']} requests and "
            f"{result['hours']} different hours; {result['reason']}.{hint if others else ''}"
        )
    if result["verdict"] == DRIFT:
        first = columns[0]
        return (
            f"Drift: {sum(column['outside'] for column in columns)} of {len(columns)} statistics "
            f"of the {served} differ from those of the training slices, most of all "
            f"{first['name']} ({first['moved']:.1f} standard deviations)."
        )
    noticeable = max(column["noticeable"] for column in columns)
    return (
        f"No drift shown: all {len(columns)} statistics of the {served} are as those of the "
        f"training slices; a shift of fewer than {noticeable:.0%} of them might go unnoticed."
    )
