"""Masks made by hand."""

import numpy as np


def square(*box: int, side: int = 20) -> np.ndarray:
    """A mask of side² pixels, true in the box (top, left, bottom, right)."""
    mask = np.zeros((side, side), bool)
    top, left, bottom, right = box
    mask[top:bottom, left:right] = True
    return mask


NOTHING = square(0, 0, 0, 0)
