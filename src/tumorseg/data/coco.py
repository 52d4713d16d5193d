"""COCO annotations: one JSON file a split, paired with images by `image_id`, as masks."""

import json
import math
import re
import reprlib
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from tumorseg.core.errors import InputError
from tumorseg.data import shapes
from tumorseg.imaging.preprocess import Mask

ANNOTATIONS = "_annotations.coco.json"
SPLITS = ("train", "valid", "test")
UNUSUAL_NAME = "has a name with bytes that are not UTF-8 or with control characters; rename it"
MAX_JSON = 2**30  # bytes; what is read takes about ten times as much memory
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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


def read_json(path: Path) -> Any:
    """Reads a JSON file, in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises:
        InputError: It is missing, is no JSON, or has a key twice, of which one would be lost.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            raise InputError(f"{path}: is no regular file; export it again")
        if status.st_size > MAX_JSON:
            raise InputError(f"{path}: has more than {MAX_JSON >> 20} MiB; export it in parts")
        return json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; each split needs one beside its images") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); allow it") from None
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}); export it again") from None
    except RecursionError:
        raise InputError(
            f"{path}: is not valid JSON (nested too deeply); export it again"
        ) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"key {reprlib.repr(twice)} is there twice in one object")
    return found


def read_document(path: Path) -> dict[str, Any]:
    """Reads a COCO file as far as that it has its two lists.

    Raises:
        InputError: It is missing or is not COCO.
    """
    document = read_json(path)
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise InputError(f"{path}: is not COCO: has no list {key!r}; export it again")
    if not isinstance(document.get("categories"), list | None):
        raise InputError(f"{path}: is not COCO: 'categories' is no list; export it again")
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
        if (key := identity(entry, "id")) is not None:
            owners.setdefault(key, []).append(image)
    for key, images in owners.items():
        if len(images) > 1:
            why = f"shares its id {reprlib.repr(key)} with another image"
            for image in images:
                image.problem = image.problem or ("duplicate_id", why)
    names = {
        str(category.get("id")): str(category.get("name"))
        for category in document.get("categories") or []
        if isinstance(category, dict)
    }
    orphans = []
    for number, annotation in enumerate(document["annotations"]):
        owner = identity(annotation, "image_id")
        if owner in owners:
            owners[owner][0].annotations.append(annotation)
            owners[owner][0].categories.add(names.get(str(annotation.get("category_id")), "?"))
        else:
            name = f"{ANNOTATIONS}#annotation[{number}]"
            given = annotation.get("image_id") if isinstance(annotation, dict) else annotation
            why = f"refers to image {reprlib.repr(given)}, which is not listed under 'images'"
            orphans.append(LabelledImage(name, 0, 0, problem=("orphan_annotation", why)))
    uses = Counter(image.file_name for image in listed)
    zipped = [*document["annotations"], *[None] * len(listed)]
    for entry, image, annotation in zip(document["images"], listed, zipped, strict=False):
        if image.problem is None:
            owner = annotation.get("image_id") if isinstance(annotation, dict) else None
            image.wrong_if_zipped = owner != entry["id"]
            if uses[image.file_name] > 1:
                image.problem = ("listed_twice", "is listed more than once")
    return sorted([*listed, *orphans], key=lambda image: image.file_name)


def identity(entry: Any, name: str) -> int | str | float | None:
    """An id in a COCO entry; None where it is none: NaN equals nothing, and True would pass for 1.

    Args:
        entry: Of a list in the JSON file.
        name: The key, such as `image_id`.
    """
    value = entry.get(name) if isinstance(entry, dict) else None
    usable = type(value) in (int, str) or (type(value) is float and math.isfinite(value))
    return value if usable else None


def _image(entry: Any, number: int) -> LabelledImage:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        why = "is not a COCO image: it has no file_name"
        return LabelledImage(f"{ANNOTATIONS}#image[{number}]", 0, 0, problem=("bad_entry", why))
    if printable(name) != name:
        return LabelledImage(printable(name), 0, 0, problem=("bad_name", UNUSUAL_NAME))
    path = PurePosixPath(name)  # without the ./ that some tools put in front
    image = LabelledImage(str(path), 0, 0)
    if path.is_absolute() or ".." in path.parts or not name:
        image.file_name, image.problem = name, ("outside", "leads out of its split's folder")
        return image
    try:
        image.width, image.height = _whole(entry, "width"), _whole(entry, "height")
        if identity(entry, "id") is None:
            raise ValueError(f"its id is {reprlib.repr(entry.get('id'))}, not a number or text")
        if entry.get("group") is not None:
            image.group = str(entry["group"])
        if entry.get("slice_number") is not None:
            image.slice_number = _whole(entry, "slice_number")
        if entry.get("spacing_mm") is not None:
            image.spacing = _spacing(entry["spacing_mm"])
    except ValueError as error:
        image.problem = ("bad_entry", f"is not a COCO image: {error}")
    return image


def _whole(entry: dict[str, Any], name: str) -> int:
    value: Any = entry.get(name)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number.is_integer() or abs(number) > 2**53:
        raise ValueError(f"its {name} is {reprlib.repr(value)}, not a whole number")
    return int(number)


def _spacing(value: Any) -> tuple[float, float]:
    try:
        row, column = float(value[0]), float(value[1])
    except (TypeError, ValueError, LookupError, OverflowError):
        row = column = math.nan
    if not (0 < row < math.inf and 0 < column < math.inf):
        raise ValueError(f"its spacing_mm is {reprlib.repr(value)}, not two distances")
    return row, column


def printable(text: str) -> str:
    """A text that can be stored and printed on one line; what cannot becomes an escape."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def annotation_rle(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """One annotation as a COCO run-length encoding.

    Polygons, compressed and uncompressed run lengths all work; an annotation that has only a box
    becomes that box.

    Raises:
        ValueError: The annotation has neither, or what it has cannot be drawn.
    """
    shape = annotation.get("segmentation")
    if shape and isinstance(shape, dict):
        return rle_tools.frPyObjects(shapes.runs(shape, height, width), height, width)
    drawn = [points.ravel().tolist() for points in shapes.polygons(annotation)]
    return rle_tools.merge(rle_tools.frPyObjects(drawn, height, width))


def image_rles(image: LabelledImage) -> list[dict[str, Any]]:
    """An image's annotations as run lengths, one each.

    Raises:
        ValueError: An annotation cannot be drawn; the message says which and why.
    """
    parts = []
    for annotation in image.annotations:
        try:
            parts.append(annotation_rle(annotation, image.height, image.width))
        except ValueError as error:
            name = reprlib.repr(annotation.get("id"))
            raise ValueError(f"annotation {name}: {error}") from None
    return parts


def union(image: LabelledImage, parts: list[dict[str, Any]]) -> str:
    """The union of an image's `image_rles` as compressed run lengths, ASCII."""
    if not parts:
        return encode(np.zeros((image.height, image.width), bool))
    return str(rle_tools.merge(parts)["counts"], "ascii")


def image_rle(image: LabelledImage) -> str:
    """The union of an image's annotations as compressed run lengths, ASCII.

    Raises:
        ValueError: An annotation cannot be drawn; the message says which and why.
    """
    return union(image, image_rles(image))


def encode(mask: Mask) -> str:
    """A mask, shape (H, W), as compressed COCO run lengths, ASCII."""
    counts = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return str(counts, "ascii")


def decode(rle: str, height: int, width: int) -> Mask:
    """The mask of compressed run lengths: bool, shape (H, W)."""
    return rle_tools.decode({"size": [height, width], "counts": rle.encode()}).astype(bool)
