"""Slices as small pictures for HTML pages, as data URLs."""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorseg.imaging.preprocess import Mask, mask_to_grid, to_grid

TRUTH = "#009E73"
WIDTH = 288  # pixels; shown smaller, for screens with fine pixels
OPACITY = 0.6  # of an attention map over its slice


def outlined(grey: NDArray[np.uint8], masks: dict[str, Mask]) -> str:
    """A slice with masks outlined in their colours.

    Args:
        grey: uint8, shape (H, W).
        masks: Colour, as #rrggbb → mask, bool, shape (H, W).
    """
    drawn: NDArray[np.uint8] = cv2.cvtColor(to_grid(grey, WIDTH), cv2.COLOR_GRAY2BGR)
    for colour, mask in masks.items():
        small = mask_to_grid(mask, WIDTH)
        borders, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        # Brighter than in charts, since it lies on dark tissue.
        blue_green_red = [90 + 0.65 * part for part in bytes.fromhex(colour[1:])[::-1]]
        cv2.drawContours(drawn, borders, -1, blue_green_red, 2, cv2.LINE_AA)
    return _jpeg_url(drawn)


def heatmap(grey: NDArray[np.uint8], values: NDArray[np.float32]) -> str:
    """A slice under a map, float32 in [0, 1], shape (h, w), in viridis with visible cells."""
    under = cv2.cvtColor(to_grid(grey, WIDTH), cv2.COLOR_GRAY2BGR)
    large = cv2.resize(values, (WIDTH, WIDTH), interpolation=cv2.INTER_NEAREST)
    over = cv2.applyColorMap((255 * large).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return _jpeg_url(cv2.addWeighted(over, OPACITY, under, 1 - OPACITY, 0))


def _jpeg_url(picture: NDArray[np.uint8]) -> str:
    _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
