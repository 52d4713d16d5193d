"""A COCO file as it is, with everything in it."""

import reprlib
from pathlib import Path
from typing import Any

from tumorseg.core.errors import InputError
from tumorseg.data import coco

Document = dict[str, Any]


def is_coco(path: Path) -> bool:
    """Whether a JSON file is COCO, or is broken but has COCO in its name."""
    try:
        document = coco.read_json(path)
    except InputError:
        # A broken file under COCO's usual name gets its message when it is read.
        return "coco" in path.name.lower()
    return isinstance(document, dict) and {"images", "annotations"} <= set(document)


def read_document(path: Path) -> Document:
    """Reads a COCO file whole.

    Raises:
        InputError: It is missing, is not COCO, or refers to an image that it does not list.
    """
    document = coco.read_document(path)
    try:
        document["categories"] = document.get("categories") or []
        ids = {coco.identity(image, "id") for image in document["images"]}
        for image in document["images"]:
            image["file_name"], int(image["width"]), int(image["height"])
        owners = {
            coco.identity(entry, "image_id"): entry.get("id") for entry in document["annotations"]
        }
        names = {category["id"]: category.get("name") for category in document["categories"]}
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        why = f"no usable {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: is not COCO: {why}; export it again") from None
    if None in ids:
        raise InputError(f"{path}: an image has no number or text for an id; give each its own")
    if len(ids) != len(document["images"]):
        raise InputError(f"{path}: two images share an id; give each its own")
    if len(names) != len(document["categories"]):
        raise InputError(f"{path}: two categories share an id; give each its own")
    for owner, annotation in owners.items():
        if owner not in ids:
            raise InputError(
                f"{path}: annotation {reprlib.repr(annotation)} refers to image "
                f"{reprlib.repr(owner)}, which is not listed under 'images'; remove it or list "
                "the image"
            )
    return document
