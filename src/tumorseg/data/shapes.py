"""The shape of COCO annotations, checked before it is drawn: pycocotools trusts its input.

Run lengths that do not add up make it write past its memory, and an outline that goes far away
makes it ask for more than there is.
"""

import re
import reprlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools
from shapely.geometry import Polygon
from shapely.validation import explain_validity

Points = NDArray[np.float64]  # (N, 2): x and y in pixels

FARTHEST = 1e6  # pixels, of a coordinate and an outline's length; drawing takes ~100 B for each
RECTANGLE_FILL = 0.99  # of its bounding box, from which an annotation is a rectangle
FRAME_TOLERANCE = 1.0  # pixels: exports round


def polygons(annotation: dict[str, Any]) -> list[Points]:
    """The outlines of an annotation that has no run lengths; its box, if it has only that.

    Returns:
        One array a polygon, float64, shape (N, 2), N ≥ 3.

    Raises:
        ValueError: It has neither, or they cannot be drawn.
    """
    shape = annotation.get("segmentation")
    if not shape:
        return [_box(annotation.get("bbox"))]
    if not isinstance(shape, list):
        raise ValueError("its segmentation is neither a list of polygons nor run lengths")
    return [_polygon(flat) for flat in shape]


def runs(shape: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Run lengths, compressed or not, as COCO's uncompressed ones.

    Args:
        shape: With `size` and `counts`.
        height: Of the picture, in pixels.
        width: In pixels.

    Raises:
        ValueError: They are none, are for another size or do not add up to it.
    """
    size, counts, pixels = shape.get("size"), shape.get("counts"), height * width
    if size != [height, width]:
        raise ValueError(f"its run lengths are for {reprlib.repr(size)}, not {[height, width]}")
    if isinstance(counts, str):
        lengths = _unpack(counts)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        lengths = counts
    else:
        raise ValueError("its run lengths are neither text nor a list of whole numbers")
    if min(lengths, default=0) < 0 or sum(lengths) != pixels:
        raise ValueError(f"its run lengths do not add up to the picture's {pixels} pixels")
    return {"size": [height, width], "counts": lengths}


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
        (points,) = polygons(annotation)
        x, y = points[:, 0], points[:, 1]
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # shoelace formula
        box = float(np.ptp(x) * np.ptp(y))
    else:
        area = float(rle_tools.area(rle))
        box = float(np.prod(rle_tools.toBbox(rle)[2:]))
    return min(float(area / box), 1.0) if box else 0.0


def label_flags(annotations: list[dict[str, Any]], height: int, width: int) -> set[str]:
    """The quality flags of an image's labels, which can be drawn nevertheless, as finding names.

    Args:
        annotations: COCO's, which `polygons` and `runs` accept.
        height: Of the image, in pixels.
        width: In pixels.
    """
    found = set()
    frame = np.array([width, height]) + FRAME_TOLERANCE
    for annotation in annotations:
        if annotation.get("segmentation") and isinstance(annotation["segmentation"], dict):
            continue
        for points in polygons(annotation):
            if "Self-intersection" in explain_validity(Polygon(points)):
                found.add("self_intersection")
            if (points < -FRAME_TOLERANCE).any() or (points > frame).any():
                found.add("out_of_frame")
    ids = [str(annotation.get("id")) for annotation in annotations]
    if len(set(ids)) < len(ids):
        found.add("duplicate_annotation_id")
    return found


def _numbers(values: Any, what: str) -> NDArray[np.float64]:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"its {what} is no plain list of numbers")
    if not all(abs(value) <= FARTHEST for value in values):
        raise ValueError(f"its {what} needs finite coordinates up to {FARTHEST:.0f} pixels")
    return np.array(values, np.float64)


def _box(values: Any) -> Points:
    found = _numbers(values, "bbox")
    if found.shape != (4,) or (found[2:] < 0).any():
        raise ValueError("its bbox is not x, y, width and height, with none of these two below 0")
    x, y, w, h = found
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])


def _polygon(flat: Any) -> Points:
    found = _numbers(flat, "polygon")
    if found.size < 6 or found.size % 2:
        raise ValueError("a polygon needs at least three points, each an x and a y")
    points = found.reshape(-1, 2)
    if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() > FARTHEST:
        raise ValueError(f"a polygon is longer than {FARTHEST:.0f} pixels around")
    return points


def _unpack(packed: str) -> list[int]:
    """COCO's compressed counts: groups of 5 bits, lowest first; from the fourth, differences."""
    if not re.fullmatch("([P-o]{0,6}[0-O])+", packed):  # seven groups hold the 32 bits of a count
        raise ValueError("its run lengths are damaged: this is no COCO text")
    lengths: list[int] = []
    for group in re.findall("[P-o]*[0-O]", packed):
        value = sum((ord(char) - 48 & 31) << 5 * place for place, char in enumerate(group))
        if ord(group[-1]) - 48 & 16:
            value -= 1 << 5 * len(group)
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
    return lengths
