"""COCO annotations with their images: copied as they are."""

import os
import reprlib
from functools import partial
from pathlib import Path
from typing import Any

from tumorseg.core.errors import InputError
from tumorseg.data import coco
from tumorseg.data.coco import ANNOTATIONS, SPLITS, printable
from tumorseg.importers.reading import (
    Copied,
    Names,
    Options,
    Record,
    Source,
    readable,
    refuse_uncopyable,
)

Document = dict[str, Any]

LOOKS_FOR = (
    f"train/, valid/ and test/ with {ANNOTATIONS}, or one COCO JSON with the images beside it or "
    "in images/"
)


def is_layout(folder: Path) -> bool:
    """Whether a folder has the project's own layout."""
    return all((folder / split / ANNOTATIONS).is_file() for split in SPLITS)


def fits(folder: Path) -> bool:
    """Whether a split or the folder itself has COCO annotations."""
    beside = any((folder / split / ANNOTATIONS).is_file() for split in SPLITS)
    return beside or bool(coco_files(folder))


def read(folder: Path, options: Options) -> Source:
    """Indexes a folder of splits, which is copied whole, or a single folder with one JSON.

    Raises:
        InputError: A JSON file is missing or unusable, there are several, or most images that it
            lists are missing; of a folder of splits, all.
    """
    found = coco_files(folder)
    if any((folder / split).is_dir() for split in SPLITS) and not found:
        return _splits(folder)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"{folder}: needs exactly one COCO JSON and has {names}; keep the right one"
        )
    document = read_document(found[0])
    records, missing = _records(document, folder, None)
    if len(missing) > len(records):
        raise InputError(
            f"{found[0]}: lists {len(missing) + len(records)} images, and {len(missing)} are "
            f"missing, such as {next(iter(missing))}; put them beside it or in images/"
        )
    header: dict[str, Any] = {key: document[key] for key in ("info", "licenses") if key in document}
    return Source(records, document["categories"], missing, header=header)


def _splits(folder: Path) -> Source:
    for split in SPLITS:
        refuse_uncopyable(folder / split)
    records: list[Record] = []
    doubts = []
    absent = 0
    categories: dict[str, Any] = {}
    for split in SPLITS:
        document = read_document(folder / split / ANNOTATIONS)
        found, missing = _records(document, folder / split, split)
        records += found
        categories |= {str(category.get("name")): category for category in document["categories"]}
        absent += len(missing)
        if missing:
            doubts.append(
                f"{len(missing)} images of {split} are listed but missing, such as "
                f"{next(iter(missing))}"
            )
    if records and absent == len(records):
        raise InputError(
            f"{folder}: lists {absent} images and holds none of them; put them beside the JSON "
            "files, or, if these are labels of the images in use, type `tumorseg data labels`"
        )
    return Source(records, list(categories.values()), doubts=doubts, layout=folder)


def coco_files(folder: Path) -> list[Path]:
    """The JSON files of a folder that are COCO, or are broken but have COCO in their names."""
    return [path for path in sorted(folder.glob("*.json")) if _is_coco(path)]


def _is_coco(path: Path) -> bool:
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


def place_of(folder: Path, name: str) -> Path:
    """Where an image lies that a folder's JSON lists: beside it, or in `images/`."""
    found = (folder / name, folder / "images" / name)
    return next((path for path in found if os.path.isfile(path)), found[0])


def _records(
    document: Document, folder: Path, split: str | None
) -> tuple[list[Record], dict[Path, str]]:
    """The records of one JSON file, and the images that it lists and that are missing."""
    annotations: dict[Any, list[dict[str, Any]]] = {entry["id"]: [] for entry in document["images"]}
    for annotation in document["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    labels = {str(entry["id"]): str(entry.get("name")) for entry in document["categories"]}
    records, missing, new_name = [], {}, Names()
    for entry in document["images"]:
        listed = Path(str(entry["file_name"]))
        if listed.is_absolute() or ".." in listed.parts:
            name = printable(str(listed))
            raise InputError(f"{folder}: image {name} lies outside it; move the image inside")
        path = place_of(folder, str(listed))
        if not os.path.isfile(path):
            missing[folder / listed] = "is listed but missing"
            if split is None:
                continue
        group, number, spacing = (entry.get(k) for k in ("group", "slice_number", "spacing_mm"))
        own = annotations[entry["id"]]
        records.append(
            Record(
                name=new_name(listed.stem, listed.suffix.lower(), group),
                group=None if group is None else str(group),
                number=number,
                split=split,
                spacing=_spacing(spacing),
                categories=partial(_present, own, labels),
                load=partial(_load, path, entry, own),
            )
        )
    return records, missing


def _spacing(value: Any) -> tuple[float, float] | None:
    """Two distances in mm, where the file came from here; other tools may mean something else."""
    try:
        row, column = value
        return float(row), float(column)
    except (TypeError, ValueError, OverflowError):
        return None


def _present(annotations: list[dict[str, Any]], labels: dict[str, str]) -> set[str]:
    return {labels.get(str(each.get("category_id")), "unknown") for each in annotations}


def _load(path: Path, entry: dict[str, Any], annotations: list[dict[str, Any]]) -> Copied:
    with readable(path):
        return Copied(path.read_bytes(), entry, annotations)
