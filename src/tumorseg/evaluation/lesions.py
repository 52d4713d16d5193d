"""Lesions instead of pixels: of the true ones, how many are found; of the calls, how many right.

Lesion sensitivity and precision as in the MSSEG challenge (Commowick et al. 2018, Scientific
Reports 8:13650), without its further conditions. Which overlap is enough, and that lesions that
touch at a corner are one, is convention.
"""

import math

import numpy as np
import pandas as pd
from scipy import ndimage

from tumorseg.imaging.preprocess import Mask

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def lesions(prediction: Mask, truth: Mask, overlap: float = 0.1) -> dict[str, int]:
    """Counts the connected parts (of 8 neighbours) of both masks, and those that meet the other.

    Args:
        prediction: bool, shape (H, W).
        truth: bool, shape (H, W).
        overlap: Share of a part's own area that must lie on the other mask, in (0, 1].

    Returns:
        lesions: Parts of the truth.
        lesions_found: Of them, those that the prediction covers enough.
        calls: Parts of the prediction.
        calls_right: Of them, those that lie enough on the truth.
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
    """How many parts a mask has, and how many of them lie on the other one enough."""
    labels, number = ndimage.label(mask, EIGHT_NEIGHBOURS)
    area = np.bincount(labels[mask], minlength=number + 1)[1:]
    shared = np.bincount(labels[mask & other], minlength=number + 1)[1:]
    return number, int(np.count_nonzero(shared / area >= overlap))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
