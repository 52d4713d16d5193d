"""The figures of each method by size of the tumour and by category."""

from typing import Any

import numpy as np
import pandas as pd

from tumorseg.evaluation.metrics import detection, summarise

FIGURES = ["slices", "groups", "mean_dice", "mean_dice_low", "mean_dice_high"]
FIGURES += ["mean_dice_by_patient", "micro_dice", "share_dice_zero", "lesion_sensitivity"]


def strata(table: pd.DataFrame, samples: int, seed: int) -> pd.DataFrame:
    """The figures of every method in every stratum of the test slices.

    Args:
        table: A row a method, seed and slice: method, path, group, category, tp, fp, fn, tn, dice,
            iou, and the counts of `metrics.lesions`. Seeds are further rows of the same slice.
        samples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        A row a stratum and method: by (size or category), stratum, method, and of the figures of
        `summarise` and `detection` those in `FIGURES`; what needs a tumour is NaN where there is
        none.
    """
    rows: list[dict[str, Any]] = []
    for by, parts in {"size": by_size(table), "category": by_category(table)}.items():
        for stratum, part in parts.items():
            for method, scored in part.groupby("method", sort=False):
                figures = summarise(scored, samples, seed) | detection(scored)
                head = {"by": by, "stratum": stratum, "method": method}
                rows.append(head | {name: figures[name] for name in FIGURES})
    return pd.DataFrame(rows)


def by_size(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Splits rows by how much of the image the true tumour takes, at the terciles of the slices.

    Args:
        table: With path, tp, fp, fn and tn.

    Returns:
        Stratum → its rows, from none to large; strata without a slice are left out.
    """
    share = (table["tp"] + table["fn"]) / table[["tp", "fp", "fn", "tn"]].sum(axis=1)
    # Each slice counts once, however many methods and seeds there are.
    shares = share[~table["path"].duplicated() & (share > 0)]
    parts = {"no tumour": table[share == 0]}
    if len(shares):
        low, high = np.quantile(shares, [1 / 3, 2 / 3])
        first, second = _percent(low), _percent(high)
        parts |= {
            f"small (below {first} of the image)": table[(share > 0) & (share < low)],
            f"medium ({first} to {second} of the image)": table[(share >= low) & (share < high)],
            f"large ({second} of the image or more)": table[share >= high],
        }
    return {stratum: part for stratum, part in parts.items() if len(part)}


def by_category(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Splits rows by category; a slice with several counts in each.

    Args:
        table: With category, as the manifest joins them.

    Returns:
        Category → its rows, in alphabetical order; last "no category", if there is such a slice.
    """
    names = table["category"].map(lambda text: {name.strip() for name in text.split(";")} - {""})
    every = sorted(set().union(*names))
    parts = {name: table[[name in own for own in names]] for name in every}
    bare = table[[not own for own in names]]
    return parts | ({"no category": bare} if len(bare) else {})


def _percent(share: float) -> str:
    """A share as a percentage of two figures: 0.018 → 1.8%."""
    return f"{np.format_float_positional(100 * share, 2, fractional=False, trim='-')}%"
