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


@dataclass
class LabelledImage:
    """One image of a split, as its JSON describes it; it may have any number of annotations.

    Attributes:
        file_name: Relative to the split's folder.
        width: In pixels, of the image as it is shown.
        height: In pixels.
        annotations: COCO's, as they are.
        categories: The names of what they show.
        group: The patient or series it comes from, where the JSON says so.
        slice_number: Its place within the group, where the JSON says so.
        spacing: Row and column spacing in mm, where the JSON says so.
        problem: A finding's name and a sentence, if the entry cannot be used.
        wrong_if_zipped: Whether pairing the two lists by position would not give it its own label.
    """

    file_name: str
    width: int
    height: int
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: set[str] = field(default_factory=set)
    group: str | None = None
    slice_number: int | None = None
    spacing: tuple[float, float] | None = None
    problem: tuple[str, str] | None = None
    wrong_if_zipped: bool = False


def read_document(path: Path) -> dict[str, Any]:
    """Reads a COCO file as far as that it has its two lists.

    Raises:
        InputError: It is missing or is not COCO.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; each split needs one beside its images") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); export it again") from None
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise InputError(f"{path}: is not COCO: has no list {key!r}; export it again")
    return document


def read_split(folder: Path) -> list[LabelledImage]:
    """Reads the annotations of one split.

    Annotations are paired by `image_id`, never by their position in the list: in the real data
    set one image without and one with two annotations would shift every mask between them.

    Args:
        folder: Holds `_annotations.coco.json` and the images.

    Returns:
        One entry an image, sorted by file name. An annotation that belongs to no image is an entry
        of its own, with a problem.

    Raises:
        InputError: The file is missing or is not COCO.
    """
    document = read_document(folder / ANNOTATIONS)
    listed = [_image(entry, number) for number, entry in enumerate(document["images"])]
    owners: dict[Any, list[LabelledImage]] = {}
    for entry, image in zip(document["images"], listed, strict=True):
        if image.problem is None:
            owners.setdefault(entry["id"], []).append(image)
    for name, images in owners.items():
        if len(images) > 1:
            for image in images:
                image.problem = ("duplicate_id", f"shares its id {name!r} with another image")
    names = {
        str(category.get("id")): str(category.get("name"))
        for category in document.get("categories") or []
        if isinstance(category, dict)
    }
    orphans = []
    for number, annotation in enumerate(document["annotations"]):
        owner = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(owner, (int, str)) and owner in owners:
            owners[owner][0].annotations.append(annotation)
            owners[owner][0].categories.add(names.get(str(annotation.get("category_id")), "?"))
        else:
            name = f"{ANNOTATIONS}#annotation[{number}]"
            why = f"refers to image {owner!r}, which is not listed under 'images'"
            orphans.append(LabelledImage(name, 0, 0, problem=("orphan_annotation", why)))
    _mark_zipped(document, listed)
    _mark_repeated_names(listed)
    return sorted([*listed, *orphans], key=lambda image: image.file_name)


def _image(entry: Any, number: int) -> LabelledImage:
    try:
        name, spacing = entry["file_name"], entry.get("spacing_mm")
        if not isinstance(name, str) or not isinstance(entry["id"], (int, str)):
            raise TypeError("its file_name or id is no plain value")
        image = LabelledImage(
            name,
            int(entry["width"]),
            int(entry["height"]),
            group=None if entry.get("group") is None else str(entry["group"]),
            slice_number=None if entry.get("slice_number") is None else int(entry["slice_number"]),
            spacing=None if spacing is None else (float(spacing[0]), float(spacing[1])),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        why = f"no usable {error}" if isinstance(error, KeyError) else str(error)
        name = f"{ANNOTATIONS}#image[{number}]"
        return LabelledImage(name, 0, 0, problem=("bad_entry", f"is not a COCO image: {why}"))
    if printable(name) != name or "\0" in name:
        image.file_name = printable(name)
        image.problem = ("bad_name", "has a name that is not UTF-8 text; rename it")
    elif Path(name).is_absolute() or ".." in Path(name).parts or not name:
        image.problem = ("outside", "leads out of its split's folder")
    return image


def printable(name: str) -> str:
    """A file name as text that can be stored; bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _mark_zipped(document: dict[str, Any], listed: list[LabelledImage]) -> None:
    annotations = document["annotations"]
    for number, (entry, image) in enumerate(zip(document["images"], listed, strict=True)):
        if image.problem is None:
            zipped = annotations[number] if number < len(annotations) else None
            owner = zipped.get("image_id") if isinstance(zipped, dict) else None
            image.wrong_if_zipped = owner != entry["id"]


def _mark_repeated_names(listed: list[LabelledImage]) -> None:
    seen: dict[str, int] = {}
    for image in listed:
        seen[image.file_name] = seen.get(image.file_name, 0) + 1
    for image in listed:
        if seen[image.file_name] > 1 and image.problem is None:
            image.problem = ("listed_twice", "is listed more than once")


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
