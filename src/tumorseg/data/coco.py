"""COCO annotations: one JSON file a split, paired with images by `image_id`, as masks."""

import itertools
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from pycocotools import mask as rle_tools
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from tumorseg.core.errors import InputError
from tumorseg.core.files import write_text
from tumorseg.data import shapes
from tumorseg.imaging.preprocess import Mask

ANNOTATIONS = "_annotations.coco.json"
SPLITS = ("train", "valid", "test")
UNUSUAL_NAME = "has a name with bytes that are not UTF-8 or with control characters; rename it"
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Distance = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass
class LabelledImage:
    """One image of a split, as its JSON describes it; it may have any number of annotations.

    Attributes:
        file_name: Relative to the split's folder.
        width: In pixels, of the image as it is shown.
        height: In pixels.
        annotations: COCO's, as they are.
        labels: The category's name of each annotation.
        group: The patient or series it comes from, where the JSON says so.
        slice_number: Its place within the group, where the JSON says so.
        spacing: Row and column spacing in mm, where the JSON says so.
        fold: The part of a cross-validation that validates it, where the JSON says so.
        taken_in: Whether retraining added it to a data set that had its test split already.
        problem: A finding's name and a sentence, if the entry cannot be used.
        wrong_if_zipped: Whether pairing the two lists by position would not give it its own label.
        entry: Its entry under `images`, as it is.
    """

    file_name: str
    width: Whole = 0
    height: Whole = 0
    annotations: list[dict[str, Any]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    group: Annotated[str, Field(coerce_numbers_to_str=True)] | None = None
    slice_number: Whole | None = None
    spacing: tuple[Distance, Distance] | None = None
    fold: Whole | None = None
    taken_in: bool = False
    problem: tuple[str, str] | None = None
    wrong_if_zipped: bool = False
    entry: dict[str, Any] = field(default_factory=dict)


class Document:
    """A COCO document that images are added to; ids go on from those it has.

    Args:
        content: An existing document, which is changed in place; None for a new one.
    """

    def __init__(self, content: dict[str, Any] | None = None) -> None:
        self.content: dict[str, Any] = {} if content is None else content
        self._ids = {}
        for key in ("categories", "images", "annotations"):
            entries = self.content[key] = self.content.get(key) or []
            ids = [each["id"] for each in entries if type(_identity(each, "id")) is int]
            self._ids[key] = itertools.count(max(ids, default=0) + 1)
        known = [each for each in self.content["categories"] if isinstance(each, dict)]
        self._category = {each.get("name"): each.get("id") for each in known}

    def category(self, name: str) -> Any:
        """The id of a category, which is added if there is none of that name."""
        if name not in self._category:
            self._category[name] = next(self._ids["categories"])
            new = {"id": self._category[name], "name": name, "supercategory": "none"}
            self.content["categories"].append(new)
        return self._category[name]

    def add(self, image: dict[str, Any], annotations: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Adds an image and its annotations under new ids.

        Args:
            image: Its entry; an id in it is replaced.
            annotations: Each with the name of its category; ids in them are replaced.
        """
        image = image | {"id": next(self._ids["images"])}
        self.content["images"].append(image)
        for name, annotation in annotations:
            ids = {"id": next(self._ids["annotations"]), "image_id": image["id"]}
            new = annotation | ids | {"category_id": self.category(name)}
            self.content["annotations"].append(new)

    def save(self, folder: Path) -> None:
        """Writes `_annotations.coco.json` into a folder."""
        write_text(folder / ANNOTATIONS, json.dumps(self.content))


def read_json(path: Path) -> Any:
    """Reads a JSON file, in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises:
        InputError: It is missing or is no JSON.
    """
    if not path.exists():
        raise InputError(f"{path}: is missing; each split needs one beside its images")
    if not path.is_file():  # reading a pipe would wait without end
        raise InputError(f"{path}: is no regular file; export it again")
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); allow it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); export it again") from None


def read_document(path: Path) -> dict[str, Any]:
    """Reads a COCO file and checks that it has its lists.

    Raises:
        InputError: It is missing or is not COCO.
    """
    document = read_json(path)
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise InputError(f"{path}: is not COCO: has no list {key!r}; export it again")
    document["categories"] = document.get("categories") or []
    if not isinstance(document["categories"], list):
        raise InputError(f"{path}: is not COCO: 'categories' is no list; export it again")
    return document


def read_split(folder: Path) -> list[LabelledImage]:
    """Reads the `_annotations.coco.json` of one split; see `labelled_images`.

    Raises:
        InputError: The file is missing or is not COCO.
    """
    return labelled_images(read_document(folder / ANNOTATIONS))


def labelled_images(document: dict[str, Any]) -> list[LabelledImage]:
    """Pairs the images of a COCO document with their annotations.

    Annotations are paired by `image_id`, never by their position in the list: in the published
    set one image without and one with two annotations would shift every mask between them.

    Returns:
        One entry an image, sorted by file name. An annotation that belongs to no image is an entry
        of its own, with a problem.
    """
    images = [_image(entry, number) for number, entry in enumerate(document["images"])]
    ids = [_identity(entry, "id") for entry in document["images"]]
    id_uses, name_uses = Counter(ids), Counter(image.file_name for image in images)
    zipped = [_identity(each, "image_id") for each in document["annotations"]]
    zipped += [None] * len(images)
    owners: dict[Any, LabelledImage] = {}
    for image, own, owner in zip(images, ids, zipped, strict=False):
        image.wrong_if_zipped = owner != own
        if own is not None:
            owners.setdefault(own, image)
            if id_uses[own] > 1:
                why = f"shares its id {reprlib.repr(own)} with another image"
                image.problem = image.problem or ("duplicate_id", why)
        if name_uses[image.file_name] > 1:
            image.problem = image.problem or ("listed_twice", "is listed more than once")
    names = category_names(document)
    for number, annotation in enumerate(document["annotations"]):
        owner = _identity(annotation, "image_id")
        if owner in owners:
            owners[owner].annotations.append(annotation)
            owners[owner].labels.append(names.get(str(annotation.get("category_id")), "?"))
        else:
            why = f"refers to image {reprlib.repr(owner)}, which is not listed under 'images'"
            orphan = LabelledImage(f"{ANNOTATIONS}#annotation[{number}]")
            orphan.problem = ("orphan_annotation", why)
            images.append(orphan)
    return sorted(images, key=lambda image: image.file_name)


def extend(document: dict[str, Any], known: Mapping[str, dict[str, Any]]) -> None:
    """Puts keys into the entries of a COCO document's images, in place.

    Args:
        document: From `read_document`.
        known: File name → keys and values.
    """
    for entry in document["images"]:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str):
            entry |= known.get(str(PurePosixPath(name)), {})


def category_names(document: dict[str, Any]) -> dict[str, str]:
    """The names of a document's categories by their ids, as texts."""
    return {
        str(category.get("id")): str(category.get("name"))
        for category in document["categories"]
        if isinstance(category, dict)
    }


def _identity(entry: Any, key: str) -> int | str | float | None:
    """The id under a key of an entry; None where it is none."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if type(value) in (int, str, float) else None


def _image(entry: Any, number: int) -> LabelledImage:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        why = "is not a COCO image: it has no file_name"
        return LabelledImage(f"{ANNOTATIONS}#image[{number}]", problem=("bad_entry", why))
    if printable(name) != name:
        return LabelledImage(printable(name), problem=("bad_name", UNUSUAL_NAME))
    path = PurePosixPath(name)  # without the ./ that some tools put in front
    if path.is_absolute() or ".." in path.parts or not name:
        return LabelledImage(name, problem=("outside", "leads out of its split's folder"))
    if _identity(entry, "id") is None:
        why = f"is not a COCO image: its id is {reprlib.repr(entry.get('id'))}"
        return LabelledImage(str(path), problem=("bad_entry", why))
    known = {key: entry.get(key) for key in ("width", "height", "group", "slice_number", "fold")}
    known["taken_in"] = entry.get("taken_in", False)
    try:
        return LabelledImage(str(path), spacing=entry.get("spacing_mm"), entry=entry, **known)
    except ValidationError as error:
        (what, *_) = error.errors()
        why = f"is not a COCO image: its {what['loc'][0]}: {what['msg']}"
        return LabelledImage(str(path), problem=("bad_entry", why))


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


def image_rle(image: LabelledImage, parts: list[dict[str, Any]] | None = None) -> str:
    """The union of an image's annotations as compressed run lengths, ASCII.

    Args:
        image: The image.
        parts: Its `image_rles`, where they are known already.

    Raises:
        ValueError: An annotation cannot be drawn; the message says which and why.
    """
    parts = image_rles(image) if parts is None else parts
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
