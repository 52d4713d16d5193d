"""COCO folders put together: the next data set, and the quarantine."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from tumorseg.core.files import atomic_path
from tumorseg.data import coco


def merge(data: Path, place: Path, joins: pd.DataFrame) -> None:
    """Builds the next data set: old files as links, new images, and two JSON files written anew."""
    merged, unpacked = place / "data", place / "unpacked" / "train"
    shutil.copytree(data, merged, symlinks=True, copy_function=_link)
    new = coco.read_document(unpacked / coco.ANNOTATIONS)
    for side, rows in joins.groupby("side"):
        path = merged / str(side) / coco.ANNOTATIONS
        document = coco.read_document(path)
        append(document, new, set(rows["name"]))
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(document), encoding="utf-8")
        for name in rows["name"]:
            (unpacked / name).rename(merged / str(side) / name)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or another one
        shutil.copy2(source, target)


def append(document: dict[str, Any], new: dict[str, Any], names: set[str]) -> None:
    """Adds the images of some names, with their annotations, to a COCO document.

    Ids are numbered on, and categories are the same where their names are.

    Args:
        document: What is added to, in place.
        new: A COCO document of ids that are unique within it.
        names: The file names of the images to take from it.
    """
    categories = document["categories"] = document.get("categories") or []
    known = {str(each.get("name")): each.get("id") for each in categories}
    chosen = {image["id"]: image for image in new["images"] if image["file_name"] in names}
    first = {key: _next_id(document[key]) for key in ("images", "annotations", "categories")}
    numbers = {old: first["images"] + place for place, old in enumerate(chosen)}
    wanted = [each for each in new["annotations"] if each["image_id"] in chosen]
    used = {annotation["category_id"] for annotation in wanted}
    ids = {}
    for category in new["categories"]:
        if category["id"] in used:
            if category["name"] not in known:
                known[category["name"]] = first["categories"]
                categories.append(category | {"id": first["categories"]})
                first["categories"] += 1
            ids[category["id"]] = known[category["name"]]
    document["images"] += [image | {"id": numbers[old]} for old, image in chosen.items()]
    document["annotations"] += [
        each
        | {"id": number, "image_id": numbers[each["image_id"]]}
        | {"category_id": ids[each["category_id"]]}
        for number, each in enumerate(wanted, first["annotations"])
    ]


def _next_id(entries: list[Any]) -> int:
    ids = [coco.identity(entry, "id") for entry in entries]
    return max((found for found in ids if isinstance(found, int)), default=0) + 1


def quarantine(place: Path, batch: str, refused: pd.DataFrame) -> None:
    """Builds the quarantine's folder: a COCO folder of its own, and a line why for each."""
    refused_to, unpacked = place / "quarantine", place / "unpacked" / "train"
    refused_to.mkdir()
    with (refused_to / "quarantine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["batch", "name", "reason", "why"])
        for row in refused[["name", "reason", "why"]].to_numpy():
            writer.writerow([coco.printable(text) for text in (batch, *row)])
    names = {name for name in refused["name"] if (unpacked / name).is_file()}
    if names:
        document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        append(document, coco.read_document(unpacked / coco.ANNOTATIONS), names)
        (refused_to / coco.ANNOTATIONS).write_text(json.dumps(document), encoding="utf-8")
        for name in names:
            (unpacked / name).rename(refused_to / name)
