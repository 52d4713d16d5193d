"""Masks and slices as PNG files, overlays and outlines."""

import math
from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tumorseg.imaging.preprocess import Grey, Mask

_RED = np.array([255, 0, 0], np.float32)
_OPACITY = 0.45


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes uint8 pixels, shape (H, W) or (H, W, 3), as a PNG file without metadata."""
    buffer = BytesIO()
    # Level 1 is several times faster than the default and barely larger for noisy scans.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def mask_png(mask: Mask) -> bytes:
    """Encodes a mask, shape (H, W), as a PNG file: white is tumour, black is not."""
    # A filter would be tried on every row, and helps only where pixels are not all equal.
    how = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return cv2.imencode(".png", mask.view(np.uint8) * 255, how)[1].tobytes()


def level_of(threshold: float) -> int:
    """The level, 1 to 255, of `levels` from which a pixel is tumour at a threshold in [0, 1]."""
    # The page computes the very same; Python's `round` would take halves to the even number.
    return max(1, math.floor(255 * threshold + 0.5))


def levels(probability: NDArray[np.float32], mask: Mask, limit: int) -> NDArray[np.uint8]:
    """Turns probabilities into 256 levels without losing or adding a pixel of the mask.

    They are rounded, but never across the threshold (which costs a level at most), so that
    `levels >= limit` is exactly the mask.

    Args:
        probability: float32 in [0, 1], shape (H, W).
        mask: bool, shape (H, W): where the probability reaches the threshold.
        limit: The threshold's level, from `level_of`.

    Returns:
        uint8, shape (H, W); 255 is probability 1.
    """
    rounded = np.rint(probability * 255).astype(np.uint8)
    return np.where(mask, np.maximum(rounded, limit), np.minimum(rounded, limit - 1)).astype(
        np.uint8
    )


def overlay(grey: Grey, mask: Mask) -> NDArray[np.uint8]:
    """Paints the tumour in translucent red, its rim in full red so that bright tissue shows it too.

    Args:
        grey: uint8, shape (H, W).
        mask: bool, shape (H, W).

    Returns:
        RGB, uint8, shape (H, W, 3).
    """
    painted = np.repeat(grey[..., None], 3, axis=2)
    painted[mask] = (painted[mask] * (1 - _OPACITY) + _RED * _OPACITY).round().astype(np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    painted[mask & ~inner] = _RED.astype(np.uint8)
    return painted


def outlines(mask: Mask, zoom: int = 4) -> list[list[float]]:
    """Traces the outer border of every connected region of a mask.

    The mask is traced at several times its size, so that the polygon runs along the pixels' edges
    rather than through their centres, as COCO polygons do.

    Args:
        mask: bool, shape (H, W).
        zoom: How many times; memory grows with its square.

    Returns:
        One flat polygon `[x0, y0, x1, y1, …]` a region, in pixels from the outer corner of the
        first pixel; regions that enclose no area are left out.
    """
    small = np.ascontiguousarray(mask, np.uint8)
    large = cv2.resize(small, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    found, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for border in found:
        # Half a pixel of tolerance turns the stairs of the raster into straight edges.
        border = cv2.approxPolyDP(border, zoom / 2, closed=True)
        # findContours gives centres of border pixels: half a small pixel inside the edge.
        points = (border[:, 0, :].astype(np.float64) + 0.5) / zoom
        if len(points) >= 3:
            polygons.append(points.ravel().round(2).tolist())
    return polygons
