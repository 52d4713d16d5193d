"""Slices of the phantom, for what only looks at their grey values."""

import numpy as np
from numpy.typing import NDArray

from tumorseg.data.phantom import random_slice, template_sections

SIDE = 96


def phantoms(count: int, seed: int) -> tuple[NDArray[np.uint8], list[float]]:
    """Slices, uint8, shape (count, SIDE, SIDE), and what share of each is tumour."""
    sections = template_sections()
    drawn = [random_slice(np.random.default_rng([seed, k]), sections, SIDE) for k in range(count)]
    areas = [float(sum(mask.mean() for _, mask in tumours)) for _, _, tumours in drawn]
    return np.stack([grey for _, grey, _ in drawn]), areas
