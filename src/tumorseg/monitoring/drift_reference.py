"""What the training and validation slices of a model look like, for later windows to compare with.

Slices of one patient, volume or hour are alike, so that N of them tell less than N independent
ones. Kish's design effect says how much less: N slices of groups of m are worth about
N / (1 + (m - 1) × correlation within groups).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import Grey
from tumorseg.monitoring.ood import DIGITS, METHOD, NAMES, statistics

FILE = "reference.json"  # among the artifacts of the run in which the model was trained
AREA = "area_fraction"
COLUMNS = (*NAMES, AREA)
LEVELS = np.linspace(0, 1, 201)
_SLACK = 1e-3  # added to each spread; some statistics hardly vary at all


def design_effect(values: ArrayLike, groups: ArrayLike) -> float:
    """How many slices are worth an independent one, from 1 up to their number.

    Args:
        values: Of one statistic, shape (N,); only their ranks count, as for the comparison.
        groups: What each slice belongs to, shape (N,).
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
        groups: Which of them belong together, shape (N,).
        side: Of the grid on which statistics are taken, in pixels: `inputs.side` of model.json.
        areas: What share of each validation slice the model calls tumour, shape (M,).
        area_groups: Which of these belong together, shape (M,).

    Returns:
        Ready for JSON; `load` says what it holds.
    """
    taken = np.stack([taken_of(grey, side) for grey in greys])
    columns = {name: describe_column(taken[:, place], groups) for place, name in enumerate(NAMES)}
    columns[AREA] = describe_column(np.asarray(areas, float), area_groups)
    return {"method": METHOD, "side": side, "columns": columns}


def taken_of(grey: Grey, side: int) -> NDArray[np.float64]:
    """The statistics of a slice, uint8, shape (H, W), rounded as the service records them."""
    return statistics(grey, side).round(DIGITS)


def describe_column(values: NDArray[np.float64], groups: ArrayLike) -> dict[str, Any]:
    """What is known of one statistic: values, shape (N,), and what each slice belongs to."""
    quantiles = np.quantile(values, LEVELS)
    return {
        "slices": len(values),
        "effective": round(len(values) / design_effect(values, groups), 2),
        "spread": round(float(values.std()) + _SLACK, 6),
        "quantiles": [round(float(value), 6) for value in quantiles],
    }


def load(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Checks a reference, and returns its columns: statistic → what is known of it.

    Each has `slices`, `effective` (how many independent ones they are worth), `spread` (a standard
    deviation) and `quantiles` at `LEVELS`.

    Raises:
        InputError: It is of another version of the statistics.
    """
    columns: dict[str, dict[str, Any]] = found.get("columns", {})
    whole = all(len(column.get("quantiles", [])) == len(LEVELS) for column in columns.values())
    if found.get("method") != METHOD or tuple(columns) != COLUMNS or not whole:
        raise InputError(
            f"{FILE} of the served model is not what this version knows as {METHOD}: run "
            "`dvc repro --force register`"
        )
    return columns
