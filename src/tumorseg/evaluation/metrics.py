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
    average slices, with a 95% percentile interval from the bootstrap, over those slices where they
    are defined. Several seeds of a network are averaged, and drawn in the bootstrap.

    Args:
        scored: A row a slice and seed, as `score` returns it. Without `path` each row is a slice;
            without `group` each slice stands alone.
        samples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        Figure → value, None where it is not defined.
    """
    scored = scored.assign(path=scored.get("path", scored.index))
    scored = scored.assign(group=scored.get("group", scored["path"]))
    tp, fp, fn, tn = (int(scored[name].sum()) for name in ("tp", "fp", "fn", "tn"))
    result: dict[str, Any] = {
        "slices": scored["path"].nunique(),
        "seeds": by_repetition(scored, "dice").shape[1],
        "micro_dice": float(dice(tp, fp + fn)),
        "micro_iou": float(iou(tp, fp + fn)),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        # Nothing to find, or nothing called tumour: undefined.
        "micro_sensitivity": tp / (tp + fn) if tp + fn else float("nan"),
        "micro_precision": tp / (tp + fp) if tp + fp else float("nan"),
    }
    for name in ("dice", "iou", "hd95", "surface_dice"):
        if name in scored:
            result |= _mean_and_interval(scored, name, samples, seed)
    for name in ("hd95", "surface_dice"):
        if name in scored:
            result[f"{name}_undefined"] = int(scored[name].isna().sum())
    return {k: None if value != value else round(value, 5) for k, value in result.items()}


def _mean_and_interval(scored: pd.DataFrame, name: str, samples: int, seed: int) -> dict[str, Any]:
    # A slice whose value some seeds lack counts with the mean of the others.
    values = by_repetition(scored, name).dropna(how="all")
    values = values.apply(lambda column: column.fillna(values.mean(axis=1)))
    groups = scored.drop_duplicates("path").set_index("path")["group"].loc[values.index].to_numpy()
    array = values.to_numpy(float)
    found = [float("nan")] * 3  # a mean of nothing
    if len(array):
        found = [float(array.mean()), *interval(array, groups, samples, seed)]
    return dict(zip((f"mean_{name}", f"mean_{name}_low", f"mean_{name}_high"), found, strict=True))


def bootstrap_means(
    values: Floats, groups: NDArray[Any], samples: int, seed: int
) -> NDArray[np.float64]:
    """Means of resamples that draw whole groups: slices of one patient are not independent.

    Cluster bootstrap, Field and Welsh 2007. Where each slice is a group it is the plain one.
    Repetitions with other seeds are drawn too, since another training would come out differently;
    R of them resampled vary by (R − 1) / R of their variance, which is made up for.

    Args:
        values: Shape (N,) or, with a column a repetition, (N, R).
        groups: Whose slice each is, shape (N,).
        samples: Number of resamples.
        seed: Of the draws.

    Returns:
        Shape (samples,).
    """
    columns = values.reshape(len(values), -1)
    _, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member)
    sums = np.stack([np.bincount(member, column) for column in columns.T], axis=1)  # G, R
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), samples)
    means = (draws @ sums) / (draws @ sizes)[:, None]  # samples, R
    repetitions = means.shape[1]
    centre = means.mean(axis=1)
    if repetitions == 1:
        return np.asarray(centre)
    chosen = rng.multinomial(repetitions, np.full(repetitions, 1 / repetitions), samples)
    off = ((means - centre[:, None]) * chosen).sum(axis=1) / repetitions
    return np.asarray(centre + off * np.sqrt(repetitions / (repetitions - 1)))


def interval(values: Floats, groups: NDArray[Any], samples: int, seed: int) -> tuple[float, float]:
    """The 95% percentile interval of a mean, from `bootstrap_means`."""
    low, high = np.percentile(bootstrap_means(values, groups, samples, seed), [2.5, 97.5])
    return float(low), float(high)


def by_repetition(scored: pd.DataFrame, column: str) -> pd.DataFrame:
    """One method's values with a row a slice and a column a seed (one, for a control)."""
    seeds = scored["seed"].fillna(-1).astype(int) if "seed" in scored else -1
    return scored.assign(seed=seeds).pivot(index="path", columns="seed", values=column)
