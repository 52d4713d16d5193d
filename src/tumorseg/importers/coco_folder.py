"""COCO annotations with their images: a folder a split, or one JSON file."""

import os
from functools import partial
from pathlib import Path

from tumorseg.core.errors import InputError
from tumorseg.data import coco
from tumorseg.data.coco import ANNOTATIONS, SPLITS
from tumorseg.importers.reading import (
    PICTURES,
    Options,
    Record,
    Source,
    readable,
    visible_files,
)

LOOKS_FOR = (
    f"train/, valid/ and test/ with {ANNOTATIONS}, or one COCO JSON with the images beside it or "
    "in images/"
)


def is_layout(folder: Path) -> bool:
    """Whether a folder has the project's own layout."""
    return all((folder / split / ANNOTATIONS).is_file() for split in SPLITS)


def fits(folder: Path) -> bool:
    """Whether a split or the folder itself has COCO annotations."""
    return bool(_json_files(folder))


def read(folder: Path, options: Options) -> Source:
    """Indexes a folder of splits, or a single folder with one JSON file.

    Raises:
        InputError: A JSON file is not COCO, there are several, or most of the images are missing.
    """
    found = _json_files(folder)
    if len(found) > 1 and None in found.values():
        several = ", ".join(path.name for path in found)
        raise InputError(
            f"{folder}: needs exactly one COCO JSON and has {several}; keep the right one"
        )
    source = Source([], [])
    listed: set[Path] = set()
    for path, split in found.items():
        document = coco.read_document(path)
        source.header.update(
            {key: document[key] for key in ("info", "licenses") if key in document}
        )
        for name in coco.category_names(document).values():
            if name not in source.categories:
                source.categories.append(name)
        for image in coco.labelled_images(document):
            beside = path.parent / image.file_name
            place = beside if os.path.isfile(beside) else path.parent / "images" / image.file_name
            listed.add(place)
            if image.problem:
                source.skipped[beside] = image.problem[1]
            elif not os.path.isfile(place):  # Path.is_file raises where the name is too long
                source.skipped[beside] = "is listed but missing"
            else:
                record = Record(
                    name=place.stem + place.suffix.lower(),
                    group=image.group,
                    number=image.slice_number,
                    split=split,
                    spacing=image.spacing,
                    labels=list(zip(image.labels, image.annotations, strict=True)),
                    load=partial(_load, place),
                    entry=image.entry,
                )
                source.records.append(record)
    if len(source.skipped) > len(source.records):
        path, why = next(iter(source.skipped.items()))
        raise InputError(
            f"{folder}: lists {len(listed)} images, and {len(source.skipped)} cannot be used, such "
            f"as {path.name}, which {why}; put images beside the JSON or in images/, or, if these "
            "are labels of the images in use, type `tumorseg data labels`"
        )
    for path in visible_files(folder):
        if path.suffix.lower() in PICTURES and path not in listed:
            source.skipped[path] = "has no labels: no JSON file lists it"
    return source


def _json_files(folder: Path) -> dict[Path, str | None]:
    """The JSON files of the splits with these, else the folder's own that are COCO."""
    splits = {folder / split / ANNOTATIONS: split for split in SPLITS}
    found: dict[Path, str | None] = {p: split for p, split in splits.items() if p.is_file()}
    return found or {path: None for path in sorted(folder.glob("*.json")) if _is_coco(path)}


def _is_coco(path: Path) -> bool:
    try:
        document = coco.read_json(path)
    except InputError:
        # A broken file under COCO's usual name gets its message when it is read.
        return "coco" in path.name.lower()
    return isinstance(document, dict) and {"images", "annotations"} <= set(document)


def _load(path: Path) -> bytes:
    with readable(path):
        return path.read_bytes()
