"""A COCO file as it is, with everything in it."""

import json
from pathlib import Path
from typing import Any

from tumorseg.errors import InputError

Document = dict[str, Any]


def is_coco(path: Path) -> bool:
    """Whether a JSON file is COCO, or is broken but has COCO in its name."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        # A broken file under COCO's usual name gets its message when it is read.
        return "coco" in path.name.lower()
    return isinstance(document, dict) and {"images", "annotations"} <= set(document)


def read_document(path: Path) -> Document:
    """Reads a COCO file whole.

    Raises:
        InputError: It is missing, is not COCO, or refers to an image that it does not list.
    """
    try:
        document: Document = json.loads(path.read_bytes())
        document.setdefault("categories", [])
        ids = {image["id"] for image in document["images"]}
        for image in document["images"]:
            image["file_name"], int(image["width"]), int(image["height"])
        owners = {entry["image_id"]: entry.get("id") for entry in document["annotations"]}
        names = {category["id"]: category.get("name") for category in document["categories"]}
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; each split needs one beside its images") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); allow it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); export it again") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not COCO: no usable {error}; export it again") from None
    if len(ids) != len(document["images"]):
        raise InputError(f"{path}: two images share an id; give each its own")
    if len(names) != len(document["categories"]):
        raise InputError(f"{path}: two categories share an id; give each its own")
    for owner, annotation in owners.items():
        if owner not in ids:
            raise InputError(
                f"{path}: annotation {annotation} refers to image {owner}, which is not listed "
                "under 'images'; remove it or list the image"
            )
    return document
