"""Metrics: counts of pixels and lesions of each slice, surface distances, means and intervals."""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tumorseg.imaging.preprocess import Mask

Floats = NDArray[np.float64]
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


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


def lesions(prediction: Mask, truth: Mask, overlap: float = 0.1) -> dict[str, int]:
    """Counts the connected parts (8 neighbours) of both masks, and those that overlap the other.

    As in the MSSEG challenge (Commowick et al. 2018, Scientific Reports 8:13650), without its
    further conditions.

    Args:
        prediction: bool, shape (H, W).
        truth: bool, shape (H, W).
        overlap: Share of a part's own area that must lie on the other mask, in (0, 1].

    Returns:
        lesions: Parts of the truth.
        lesions_found: Of them, those whose overlap with the prediction suffices.
        calls: Parts of the prediction.
        calls_right: Of them, those whose overlap with the truth suffices.
    """
    true, found = _parts(truth, prediction, overlap)
    calls, right = _parts(prediction, truth, overlap)
    return {"lesions": true, "lesions_found": found, "calls": calls, "calls_right": right}


def detection(table: pd.DataFrame) -> dict[str, float]:
    """Reduces the counts of `lesions`, pooled over all rows.

    Args:
        table: A row a slice, with lesions, lesions_found, calls and calls_right.

    Returns:
        lesion_sensitivity: Share of true lesions found; NaN if there is none.
        lesion_precision: Share of calls that are right; NaN if there is none.
        lesion_f1: Their harmonic mean; NaN where either is, 0 where both are 0.
    """
    total = table[["lesions", "lesions_found", "calls", "calls_right"]].sum()
    sensitivity = _share(total["lesions_found"], total["lesions"])
    precision = _share(total["calls_right"], total["calls"])
    either = sensitivity + precision
    figures = {
        "lesion_sensitivity": sensitivity,
        "lesion_precision": precision,
        "lesion_f1": 0.0 if either == 0 else 2 * sensitivity * precision / either,
    }
    return {name: round(value, 5) for name, value in figures.items()}


def _parts(mask: Mask, other: Mask, overlap: float) -> tuple[int, int]:
    """How many parts a mask has, and how many of them overlap the other mask enough."""
    labels, number = ndimage.label(mask, EIGHT_NEIGHBOURS)
    area = np.bincount(labels[mask], minlength=number + 1)[1:]
    shared = np.bincount(labels[mask & other], minlength=number + 1)[1:]
    return number, int(np.count_nonzero(shared / area >= overlap))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def distances(
    prediction: Mask, truth: Mask, spacing: tuple[float, float] | None, tolerance: float
) -> dict[str, float]:
    """Distance between two borders, and the share of them that is close enough, both by MONAI.

    A border is the mask's own pixels that have one of their four neighbours outside it; outside
    the picture is outside the mask.

    Args:
        prediction: bool, shape (H, W).
        truth: bool, shape (H, W).
        spacing: Height and width of a pixel in mm; None measures in pixels.
        tolerance: How far a border may be off for the surface Dice, in mm or in pixels, inclusive.

    Returns:
        hd95: 95th percentile of the distances from each border to the other, the larger of the
            two directions (Hausdorff distance without its outliers), in mm or in pixels.
        surface_dice: Share of both borders within the tolerance, in [0, 1] (Nikolov et al. 2021,
            doi:10.2196/26151; border lengths counted in pixels, as in Seidlitz et al. 2022,
            arXiv:2111.05408).
        Where both masks are empty both are NaN. Where one is, hd95 is NaN, since there is no
        distance to nothing, and surface_dice is 0, since no border is near the other.
    """
    # Importing MONAI takes seconds.
    from monai.metrics import get_mask_edges, get_surface_distance

    if not (prediction.any() and truth.any()):
        either = prediction.any() or truth.any()
        return {"hd95": math.nan, "surface_dice": 0.0 if either else math.nan}
    # Cut to the pixels that matter, which is several times as fast.
    (around,) = ndimage.find_objects((prediction | truth).astype(np.uint8))
    # The steps of MONAI's compute_hausdorff_distance and compute_surface_dice, taken once for both.
    edges = get_mask_edges(prediction[around], truth[around], crop=False)
    there, back = (get_surface_distance(*pair, spacing=spacing) for pair in (edges, edges[::-1]))
    both = np.concatenate([there, back])
    return {
        "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        # As MONAI compares: in float32, so that the last bits of a spacing do not decide.
        "surface_dice": float(np.mean(both <= np.float32(tolerance))),
    }


def summarise(scored: pd.DataFrame, samples: int, seed: int) -> dict[str, Any]:
    """Reduces the slices of one method on one split.

    Micro figures pool all pixels; mean figures average the slices where they are defined. Seeds of
    a network are averaged. All 95% percentile intervals resample whole groups, and seeds.

    Args:
        scored: A row a slice and seed, as `score` returns it. Without `path` each row is a slice;
            without `group`, which says whose slice it is, each slice is one.
        samples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        Figure → value, None where it is not defined. Among them slices and groups, how many there
        are; mean_dice_by_patient, the mean over groups of each one's mean Dice; detection_rate, the
        share of slices with a tumour whose prediction overlaps it at all, and share_dice_zero, the
        share of them with Dice 0, which is the rest.
    """
    scored = scored.assign(path=scored.get("path", scored.index))
    scored = scored.assign(group=scored.get("group", scored["path"]))
    tp, fp, fn, tn = (int(scored[name].sum()) for name in ("tp", "fp", "fn", "tn"))
    result: dict[str, Any] = {
        "slices": scored["path"].nunique(),
        "groups": scored["group"].nunique(),
        "seeds": by_repetition(scored, "dice").shape[1],
        "micro_dice": float(dice(tp, fp + fn)),
        "micro_iou": float(iou(tp, fp + fn)),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        "micro_sensitivity": _share(tp, tp + fn),
        "micro_precision": _share(tp, tp + fp),
    }
    with_tumour = scored[scored["tp"] + scored["fn"] > 0]
    missed = int((with_tumour["tp"] == 0).sum())
    result["detection_rate"] = _share(len(with_tumour) - missed, len(with_tumour))
    result["share_dice_zero"] = _share(missed, len(with_tumour))
    # Micro Dice is the mean Dice of slices that weigh by the sizes of their two masks; the mean by
    # patient is that of slices of which each group's weigh 1 together.
    sizes = scored.assign(size=2 * scored["tp"] + scored["fp"] + scored["fn"])
    table = by_repetition(scored, "dice")
    values, groups = table.to_numpy(float), groups_of(scored, table)
    shares = 1 / pd.Series(groups).groupby(groups).transform("size").to_numpy(float)
    each = np.broadcast_to(shares[:, None], values.shape)
    result["mean_dice_by_patient"] = float(np.average(values, weights=each))
    for name, weights in {
        "micro_dice": by_repetition(sizes, "size").to_numpy(float),
        "mean_dice_by_patient": each,
    }.items():
        drawn = bootstrap_means(values, groups, samples, seed, weights)
        result[f"{name}_low"], result[f"{name}_high"] = _ends(drawn)
    for name in ("dice", "iou", "hd95", "surface_dice"):
        if name not in scored:
            continue
        # A slice whose value some seeds lack counts with the mean of the others.
        table = by_repetition(scored, name).dropna(how="all")
        array = table.T.fillna(table.mean(axis=1)).T.to_numpy(float)
        mean, ends = math.nan, (math.nan, math.nan)
        if len(array):
            mean = float(array.mean())
            ends = interval(array, groups_of(scored, table), samples, seed)
        result |= {f"mean_{name}": mean, f"mean_{name}_low": ends[0], f"mean_{name}_high": ends[1]}
        if name in ("hd95", "surface_dice"):
            result[f"{name}_undefined"] = int(scored[name].isna().sum())
    return {k: None if value != value else round(value, 5) for k, value in result.items()}


def group_name(patients_known: bool) -> str:
    """What a group of slices that are resampled together is called in tables and sentences."""
    return "patient" if patients_known else "guessed group"


def counted(slices: int, groups: int, patients_known: bool) -> str:
    """How much a figure rests on, such as `215 slices of 95 patients`."""
    name = group_name(patients_known)
    return f"{slices:,} slice{'s' * (slices != 1)} of {groups:,} {name}{'s' * (groups != 1)}"


def groups_of(scored: pd.DataFrame, values: pd.DataFrame) -> NDArray[Any]:
    """The group of each row of `values`, which `by_repetition` made from `scored`."""
    group = scored.drop_duplicates("path").set_index("path")["group"]
    return group.loc[values.index].to_numpy()


def bootstrap_means(
    values: Floats,
    groups: NDArray[Any],
    samples: int,
    seed: int,
    weights: Floats | None = None,
) -> NDArray[np.float64]:
    """Means of resamples that draw whole groups: slices of one patient are not independent.

    Cluster bootstrap, Field and Welsh 2007. Repetitions with other seeds are resampled too; their
    spread is multiplied by √(R / (R − 1)), since R resampled values vary too little.

    Args:
        values: Shape (N,) or, with a column a repetition, (N, R).
        groups: Whose slice each is, shape (N,).
        samples: Number of resamples.
        seed: Of the draws.
        weights: Of each value in its mean, same shape; by default all equal.

    Returns:
        Shape (samples,); 1 where the weights of a resample are all 0.
    """
    columns = values.reshape(len(values), -1)
    weigh = np.ones_like(columns) if weights is None else weights.reshape(columns.shape)
    _, member = np.unique(groups, return_inverse=True)
    sizes, sums = (
        np.stack([np.bincount(member, column) for column in table.T], axis=1)  # G, R
        for table in (weigh, weigh * columns)
    )
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), samples)
    total = draws @ sizes  # samples, R
    means = np.divide(draws @ sums, total, out=np.ones_like(total), where=total > 0)
    repetitions = means.shape[1]
    centre = means.mean(axis=1)
    if repetitions == 1:
        return np.asarray(centre)
    chosen = rng.multinomial(repetitions, np.full(repetitions, 1 / repetitions), samples)
    off = ((means - centre[:, None]) * chosen).sum(axis=1) / repetitions
    return np.asarray(centre + off * np.sqrt(repetitions / (repetitions - 1)))


def interval(values: Floats, groups: NDArray[Any], samples: int, seed: int) -> tuple[float, float]:
    """The 95% percentile interval of a mean, from `bootstrap_means`."""
    return _ends(bootstrap_means(values, groups, samples, seed))


def _ends(means: Floats) -> tuple[float, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def by_repetition(scored: pd.DataFrame, column: str) -> pd.DataFrame:
    """One method's values with a row a slice and a column a seed (one, for a baseline)."""
    seeds = scored["seed"].fillna(-1).astype(int) if "seed" in scored else -1
    return scored.assign(seed=seeds).pivot(index="path", columns="seed", values=column)
