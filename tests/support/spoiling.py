"""A healthy little data folder, places in it to spoil, and what must come of that."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tumorseg.data import coco

WIDTH, HEIGHT = 80, 64
HEALTHY = tuple(f"{split}/{name}.png" for split in coco.SPLITS for name in "abc")


@dataclass(frozen=True)
class Outcome:
    """What validate makes of a case."""

    # Path in the manifest → the finding's name and a phrase of its sentence.
    problems: dict[str, tuple[str, str]] = field(default_factory=dict)
    oddities: tuple[str, ...] = ()  # names noted with the image itself
    error: str | None = None  # a phrase of the one-line error that ends the run


# {name} is the spoilt image's file, {number} its place in the lists.
IMAGE = "train/{name}"
ENTRY = f"train/{coco.ANNOTATIONS}#image[{{number}}]"
ANNOTATION = f"train/{coco.ANNOTATIONS}#annotation[{{number}}]"
USABLE = Outcome()


def finding(name: str, phrase: str = "", path: str = IMAGE, **others: str) -> Outcome:
    """One finding; `others` are finding → path of what follows from it."""
    more = {where: (what, "") for what, where in others.items()}
    return Outcome({path: (name, phrase)} | more)


def odd(*names: str) -> Outcome:
    return Outcome(oddities=names)


def error(phrase: str) -> Outcome:
    return Outcome(error=phrase)


@dataclass
class Spot:
    """One image of the train split with one annotation, to be spoilt."""

    folder: Path  # data/train
    document: dict[str, Any]  # its JSON, written after the spoiling
    number: int  # place of the image and of its annotation in the lists; also their ids
    name: str

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def image(self) -> dict[str, Any]:
        return self.document["images"][self.number]

    @property
    def annotation(self) -> dict[str, Any]:
        return self.document["annotations"][self.number]

    def pixels(self, *shape: int) -> np.ndarray:
        """Noise, uint8, of (64, 80) or the shape given."""
        return np.random.default_rng(self.number).integers(
            0, 256, shape or (HEIGHT, WIDTH), np.uint8
        )

    def save(self, image: Image.Image, kind: str = "PNG", **options: Any) -> None:
        """Replaces the file; the JSON's size stays."""
        image.save(self.path, format=kind, **options)


@dataclass(frozen=True)
class Case:
    """One malformed or odd input."""

    name: str
    spoil: Callable[[Any], None]  # takes a Spot, or for cases about a whole folder, data/
    outcome: Outcome = USABLE  # what validate must make of it
    suffix: str = ".png"
    imports: str | None = None  # a phrase of the importer's error; None: it is imported


def healthy(data: Path) -> dict[str, dict[str, Any]]:
    """Writes three images of noise a split and returns the documents, without writing them."""
    documents: dict[str, dict[str, Any]] = {}
    for seed, split in enumerate(coco.SPLITS):
        (data / split).mkdir(parents=True)
        documents[split] = {
            "categories": [{"id": 1, "name": "tumour"}],
            "images": [],
            "annotations": [],
        }
        for number, name in enumerate("abc"):
            spot = add(data / split, documents[split], f"{name}.png")
            noise = np.random.default_rng([seed, number]).integers(0, 256, (64, 80), np.uint8)
            spot.save(Image.fromarray(noise))
    return documents


def add(folder: Path, document: dict[str, Any], name: str) -> Spot:
    """Adds an image of noise with a pentagon for a label."""
    spot = Spot(folder, document, len(document["images"]), name)
    size = {"width": WIDTH, "height": HEIGHT}
    document["images"].append({"id": spot.number, "file_name": name} | size)
    outline = [[10, 10, 30, 12, 34, 26, 22, 40, 9, 30]]
    label = {"segmentation": outline, "bbox": [9, 10, 25, 30], "category_id": 1}
    document["annotations"].append({"id": spot.number, "image_id": spot.number} | label)
    spot.save(Image.fromarray(spot.pixels()), "JPEG" if name.endswith(".jpg") else "PNG")
    return spot


def write(data: Path, documents: dict[str, dict[str, Any]]) -> None:
    for split, document in documents.items():
        (data / split / coco.ANNOTATIONS).write_text(json.dumps(document))


def spoilt(data: Path, cases: list[Case]) -> Outcome:
    """Writes a folder with an image for each case and spoils it; returns what must come of all."""
    documents = healthy(data)
    train = documents["train"]
    spots = [
        add(data / "train", train, f"x{place}{case.suffix}") for place, case in enumerate(cases)
    ]
    problems = {}
    for case, spot in zip(cases, spots, strict=True):
        case.spoil(spot)
        for path, what in case.outcome.problems.items():
            problems[path.format(name=spot.name, number=spot.number)] = what
    write(data, documents)
    return Outcome(problems, cases[0].outcome.oddities)


def spoilt_folder(data: Path, case: Case) -> Outcome:
    """Writes a healthy folder and spoils it."""
    write(data, healthy(data))
    case.spoil(data)
    return case.outcome
