"""The comparison: the window's quantiles must lie within bands around the training slices'.

If the two distributions are the same, the greatest distance between their empirical distribution
functions stays below the critical value d of the two-sample Kolmogorov-Smirnov test; in other
words, the window's quantile at p lies between the training quantiles at p - d and p + d. These are
bands that Great Expectations checks and draws. The level is divided by the number of columns, and
the slices count as so many as they are worth independent ones.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import great_expectations.expectations as expect
import numpy as np
import pandas as pd
from scipy.stats import kstwo

from tumorseg.core.params import DriftParams
from tumorseg.monitoring.drift_reference import AREA, COLUMNS, LEVELS, design_effect
from tumorseg.reporting.data_docs import validated

DRIFT, NONE, TOO_FEW = "drift", "no drift shown", "too few slices"
AT = [round(0.05 * step, 2) for step in range(1, 20)]  # the quantiles that are compared
Within = Callable[[pd.DataFrame, list[dict[str, Any]], Path | None], dict[str, bool]]
SHOWN = (0.05, 0.5, 0.95)
_BLIND = 0.5  # of d: what moves by less than half of the slices would go unnoticed


class ExpectQuantilesWithinBands(expect.ExpectColumnQuantileValuesToBeBetween):
    """Great Expectations' own, whose outcome holds NumPy's bool, which its store cannot write."""

    def _validate(self, *given: Any, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = super()._validate(*given, **more)
        inside = [bool(one) for one in found["result"]["details"]["success_details"]]
        found["result"]["details"]["success_details"] = inside
        return found | {"success": all(inside)}


def expected(
    window: pd.DataFrame, found: list[dict[str, Any]], docs: Path | None = None
) -> dict[str, bool]:
    """Asks Great Expectations of each column whether it lies within its bands.

    Args:
        window: As for `judge`.
        found: A dictionary a column, with `name`, `effective` and `bands`: lowest and highest
            value, None for none, of each quantile of `AT`.
        docs: As for `judge`.
    """
    suite: list[expect.Expectation] = [
        ExpectQuantilesWithinBands(
            column=column["name"],
            quantile_ranges={"quantiles": AT, "value_ranges": column["bands"]},
            allow_relative_error="linear",
            notes=f"worth {column['effective']:.0f} independent slices",
        )
        for column in found
    ]
    known = window[list(COLUMNS)]
    outcomes = validated("served slices", known, suite, docs, {"result_format": "SUMMARY"})
    return {r.expectation_config.kwargs["column"]: bool(r.success) for r in outcomes}


def judge(
    window: pd.DataFrame,
    columns: Mapping[str, Mapping[str, Any]],
    params: DriftParams,
    docs: Path | None = None,
    within: Within = expected,
) -> dict[str, Any]:
    """Says whether the window shows drift.

    Args:
        window: From `read_window`.
        columns: From `tumorseg.monitoring.drift_reference.load`.
        params: The section.
        docs: Receives Data Docs of the check; none are written if None, or the slices too few.
        within: What compares; a benchmark of thousands of windows has a quicker one.

    Returns:
        Ready for JSON: `verdict` (drift, no drift shown or too few slices), `reason` where too few,
        the counts, and under `columns` for each statistic, the most moved first, `outside` (whether
        it left its band), `moved` (by how many standard deviations of training at most),
        `effective`, `noticeable` (d), `training` and `window` (the quantiles at `SHOWN`).
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
            "reason": f"{params.min_rows} slices in {params.min_groups} requests and hours at least"
        }
    found = [_column(window, name, columns[name], params) for name in COLUMNS]
    if np.median([column["noticeable"] for column in found]) > _BLIND:
        worth = np.median([column["effective"] for column in found])
        return result | {
            "reason": f"they are so alike within requests or hours that they are worth {worth:.0f}"
        }
    inside = within(window, found, docs)
    for column in found:
        column["outside"] = not inside[column["name"]]
        del column["bands"]
    found.sort(key=lambda column: (not column["outside"], -column["moved"]))
    verdict = DRIFT if any(column["outside"] for column in found) else NONE
    return result | {"verdict": verdict, "columns": found}


@lru_cache(maxsize=4096)
def critical_value(level: float, slices: int) -> float:
    """The distance that two equal distributions exceed with a probability of `level`.

    Args:
        level: Of one column.
        slices: m n / (m + n), of m and n independent slices.
    """
    return float(kstwo.isf(level, slices))


def _column(
    window: pd.DataFrame, name: str, known: Mapping[str, Any], params: DriftParams
) -> dict[str, Any]:
    values = window[name].to_numpy(float)
    # A client may send a patient's slices one by one: they have the hour in common.
    effect = max(design_effect(values, window[group]) for group in ("request", "hour"))
    worth = len(values) / effect
    both = worth * known["effective"] / (worth + known["effective"])
    d = critical_value(params.alpha / len(COLUMNS), max(1, round(both)))
    training = np.array(known["quantiles"])
    room = params.tolerance * known["spread"]
    observed = np.quantile(values, AT)
    usual = np.interp(AT, LEVELS, training)
    bands = []
    for p in AT:
        # Of two known quantiles the outer one, so that the band is never too narrow.
        low, high = np.floor((p - d) * 200 + 1e-9), np.ceil((p + d) * 200 - 1e-9)
        bands.append(
            [
                float(training[int(low)] - room) if low >= 0 else None,
                float(training[int(high)] + room) if high <= 200 else None,
            ]
        )
    return {
        "name": name,
        "outside": False,
        "moved": _rounded(np.abs(observed - usual).max() / known["spread"]),
        "effective": round(worth, 1),
        "noticeable": round(d, 3),
        "training": [_rounded(np.interp(p, LEVELS, training)) for p in SHOWN],
        "window": [_rounded(np.quantile(values, p)) for p in SHOWN],
        "bands": bands,
    }


def _rounded(value: float) -> float | None:
    return None if pd.isna(value) else round(float(value), 4)
