"""Masks and their outlines: raster to polygons, polygons and run lengths to raster."""

import cv2
import numpy as np

from tumorseg.imaging.preprocess import Mask


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
