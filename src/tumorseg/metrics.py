"""Counts first, reduction second: TP, FP, FN and TN of each slice, then every figure from them."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tumorseg.preprocess import Mask

Floats = NDArray[np.float64]


def count(prediction: Mask, truth: Mask) -> dict[str, int]:
    """True and false positives and negatives of one slice, in pixels; masks are (H, W)."""
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return {"tp": tp, "fp": fp, "fn": fn, "tn": truth.size - tp - fp - fn}


def dice(tp: ArrayLike, wrong: ArrayLike) -> Floats:
    """Dice 2·TP / (2·TP + FP + FN), elementwise; 1 where both masks are empty.

    Args:
        tp: True positives.
        wrong: False positives plus false negatives.
    """
    return _ratio(2 * np.asarray(tp, np.float64), wrong)


def iou(tp: ArrayLike, wrong: ArrayLike) -> Floats:
    """Intersection over union TP / (TP + FP + FN), elementwise; 1 where both masks are empty."""
    return _ratio(np.asarray(tp, np.float64), wrong)


def _ratio(right: Floats, wrong: ArrayLike) -> Floats:
    total = right + np.asarray(wrong, np.float64)
    return np.divide(right, total, out=np.ones_like(total), where=total > 0)


def score(counts: pd.DataFrame) -> pd.DataFrame:
    """Adds the columns `dice` and `iou` to a table with tp, fp, fn and tn, a row a slice."""
    wrong = counts["fp"] + counts["fn"]
    return counts.assign(dice=dice(counts["tp"], wrong), iou=iou(counts["tp"], wrong))


def summarise(scored: pd.DataFrame, samples: int, seed: int) -> dict[str, Any]:
    """Reduces the slices of one method on one split.

    Micro figures pool all pixels, and are those that the superseded project reports; mean figures
    average slices, with a 95% percentile interval from the bootstrap.

    Args:
        scored: A row a slice, as `score` returns it; the column `group`, if there is one, says
            which slices belong together.
        samples: Bootstrap resamples.
        seed: Of the bootstrap.
    """
    tp, fp, fn, tn = (int(scored[name].sum()) for name in ("tp", "fp", "fn", "tn"))
    result: dict[str, Any] = {
        "slices": len(scored),
        "micro_dice": float(dice(tp, fp + fn)),
        "micro_iou": float(iou(tp, fp + fn)),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        "micro_sensitivity": float(_ratio(np.asarray(tp, np.float64), fn)),
        "micro_precision": float(_ratio(np.asarray(tp, np.float64), fp)),
    }
    groups = scored.get("group", scored.index).to_numpy()
    for name in ("dice", "iou"):
        low, high = interval(scored[name].to_numpy(float), groups, samples, seed)
        result |= {
            f"mean_{name}": float(scored[name].mean()),
            f"mean_{name}_low": low,
            f"mean_{name}_high": high,
        }
    return {key: round(value, 5) for key, value in result.items()}


def bootstrap_means(
    values: Floats, groups: NDArray[Any], samples: int, seed: int
) -> NDArray[np.float64]:
    """Means of resamples that draw whole groups: slices of one patient are not independent.

    Cluster bootstrap, Field and Welsh 2007. Where each slice is a group it is the plain one.

    Args:
        values: Shape (N,).
        groups: Whose slice each is, shape (N,).
        samples: Number of resamples.
        seed: Of the draws.

    Returns:
        Shape (samples,).
    """
    _, member = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(member, values), np.bincount(member)
    chances = np.full(len(sizes), 1 / len(sizes))
    draws = np.random.default_rng(seed).multinomial(len(sizes), chances, samples)
    return np.asarray((draws @ sums) / (draws @ sizes))


def interval(values: Floats, groups: NDArray[Any], samples: int, seed: int) -> tuple[float, float]:
    """The 95% percentile interval of a mean, from `bootstrap_means`."""
    low, high = np.percentile(bootstrap_means(values, groups, samples, seed), [2.5, 97.5])
    return float(low), float(high)
