"""COCO annotations: one JSON file a split, paired with images by `image_id`, as masks."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from tumorseg.errors import InputError
from tumorseg.preprocess import Mask

ANNOTATIONS = "_annotations.coco.json"
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class LabelledImage:
    """One image of a split, as its JSON describes it; it may have any number of annotations."""

    file_name: str
    width: int
    height: int
    annotations: list[dict[str, Any]] = field(default_factory=list)


def read_split(folder: Path) -> list[LabelledImage]:
    """Reads the annotations of one split.

    Annotations are paired by `image_id`, never by their position in the list: in the real data
    set one image without and one with two annotations would shift every mask between them.

    Args:
        folder: Holds `_annotations.coco.json` and the images.

    Raises:
        InputError: The file is missing, is not COCO, or refers to an image that it does not list.
    """
    path = folder / ANNOTATIONS
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        images = {
            image["id"]: LabelledImage(
                str(image["file_name"]), int(image["width"]), int(image["height"])
            )
            for image in document["images"]
        }
        annotations = list(document["annotations"])
        owners = [annotation["image_id"] for annotation in annotations]
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; each split needs one beside its images") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); export it again") from None
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is not COCO: no usable {error}; export it again") from None
    if len(images) != len(document["images"]):
        raise InputError(f"{path}: two images share an id; give each its own")
    for annotation, owner in zip(annotations, owners, strict=True):
        if owner not in images:
            raise InputError(
                f"{path}: annotation {annotation.get('id')} refers to image {owner}, which is not "
                "listed under 'images'; remove it or list the image"
            )
        images[owner].annotations.append(annotation)
    return sorted(images.values(), key=lambda image: image.file_name)


def annotation_rle(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """One annotation as a COCO run-length encoding.

    Polygons, compressed and uncompressed run lengths all work; an annotation that has only a box
    becomes that box.

    Raises:
        ValueError: The annotation has neither, or its run lengths are of another size.
    """
    shape = annotation.get("segmentation")
    if not shape:
        x, y, w, h = (float(value) for value in annotation["bbox"])
        shape = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if isinstance(shape, dict):
        if list(shape["size"]) != [height, width]:
            raise ValueError(f"its run lengths are for {shape['size']}, not {[height, width]}")
        if isinstance(shape["counts"], list):
            return rle_tools.frPyObjects(shape, height, width)
        return shape
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in shape]
    for polygon in polygons:
        if polygon.size < 6 or polygon.size % 2 or not np.isfinite(polygon).all():
            raise ValueError("a polygon needs at least three points with finite coordinates")
    return rle_tools.merge(
        rle_tools.frPyObjects([list(polygon) for polygon in polygons], height, width)
    )


def image_rle(image: LabelledImage) -> str:
    """The union of an image's annotations as compressed run lengths, ASCII.

    Raises:
        ValueError: An annotation cannot be drawn; the message says which and why.
    """
    parts = []
    for annotation in image.annotations:
        try:
            parts.append(annotation_rle(annotation, image.height, image.width))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"annotation {annotation.get('id')}: {error}") from None
    if not parts:
        return encode(np.zeros((image.height, image.width), bool))
    return str(rle_tools.merge(parts)["counts"], "ascii")


def encode(mask: Mask) -> str:
    """A mask, shape (H, W), as compressed COCO run lengths, ASCII."""
    counts = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return str(counts, "ascii")


def decode(rle: str, height: int, width: int) -> Mask:
    """The mask of compressed run lengths: bool, shape (H, W)."""
    return rle_tools.decode({"size": [height, width], "counts": rle.encode()}).astype(bool)


def box_fill(annotation: dict[str, Any], rle: dict[str, Any]) -> float:
    """Area of an annotation over the area of its bounding box; 1 for an axis-aligned rectangle.

    Polygons are measured by their coordinates (shoelace formula), where no raster blurs the edge.
    """
    shape = annotation.get("segmentation")
    if not shape:
        return 1.0
    if isinstance(shape, list) and len(shape) == 1:
        points = np.asarray(shape[0], dtype=np.float64).reshape(-1, 2)
        x, y = points[:, 0], points[:, 1]
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        box = float(np.ptp(x) * np.ptp(y))
    else:
        area = float(rle_tools.area(rle))
        box = float(np.prod(rle_tools.toBbox(rle)[2:]))
    return float(area / box) if box else 0.0
