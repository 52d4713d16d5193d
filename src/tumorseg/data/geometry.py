"""The shape of labels: are they boxes, do they cross themselves, do they leave the picture."""

from typing import Any

import numpy as np
from pycocotools import mask as rle_tools
from shapely.geometry import Polygon
from shapely.validation import explain_validity

from tumorseg.data import shapes
from tumorseg.data.coco import LabelledImage

# At least this share of its bounding box makes an annotation a rectangle.
RECTANGLE_FILL = 0.99
FRAME_TOLERANCE = 1.0  # pixels: exports round


def box_fill(annotation: dict[str, Any], rle: dict[str, Any]) -> float:
    """Area of an annotation over the area of its bounding box; 1 for an axis-aligned rectangle.

    Polygons are measured by their coordinates, where no raster blurs the edge.

    Args:
        annotation: COCO's.
        rle: The same as run lengths, from `tumorseg.data.coco.annotation_rle`.
    """
    shape = annotation.get("segmentation")
    if not shape:
        return 1.0
    if isinstance(shape, list) and len(shape) == 1:
        (points,) = shapes.polygons(annotation)
        x, y = points[:, 0], points[:, 1]
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # shoelace formula
        box = float(np.ptp(x) * np.ptp(y))
    else:
        area = float(rle_tools.area(rle))
        box = float(np.prod(rle_tools.toBbox(rle)[2:]))
    return min(float(area / box), 1.0) if box else 0.0


def oddities(image: LabelledImage) -> set[str]:
    """What is strange about an image's labels, though they can be drawn, as finding names.

    Args:
        image: With annotations that `tumorseg.data.coco.image_rle` accepts.
    """
    found = set()
    for annotation in image.annotations:
        shape = annotation.get("segmentation")
        if shape and isinstance(shape, dict):
            continue
        for points in shapes.polygons(annotation):
            if "Self-intersection" in explain_validity(Polygon(points)):
                found.add("self_intersection")
            frame = np.array([image.width, image.height]) + FRAME_TOLERANCE
            if (points < -FRAME_TOLERANCE).any() or (points > frame).any():
                found.add("out_of_frame")
    ids = [str(annotation.get("id")) for annotation in image.annotations]
    if len(set(ids)) < len(ids):
        found.add("duplicate_annotation_id")
    return found
