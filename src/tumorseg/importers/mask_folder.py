"""Images with a mask file each: NAME and NAME_mask side by side, or images/ and masks/."""

import re
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.data.coco import SPLITS
from tumorseg.imaging.preprocess import Grey, Mask, to_grey
from tumorseg.importers.reading import (
    PICTURES,
    Options,
    Record,
    Source,
    annotate,
    readable,
    visible_files,
)

LOOKS_FOR = "NAME.tif with NAME_mask.tif (or png, jpg, bmp), or images/ and masks/ with equal names"
TUMOUR = "tumour"
SPLIT_FOLDERS = {split: split for split in SPLITS} | {"val": "valid"}


def fits(folder: Path) -> bool:
    """Whether there are pictures called NAME_mask, or in a folder masks/."""
    return any(_is_mask(path, folder) for path in _pictures(folder))


def read(folder: Path, options: Options) -> Source:
    """Indexes a tree of images and masks, reading the masks and the images' headers.

    A patient is a folder where there are several, else what comes before a name's trailing `_NN`.
    Folders of one name are one patient, since downloads may hold a set twice, unless all have it.
    An image whose mask cannot be read or has another size is left out.

    Raises:
        InputError: More than half of the images have no mask.
    """
    found, skipped = _pairs(folder)
    places = []
    for image, _ in found:
        *parents, name = _key(image, folder).parts
        places.append(PurePath(*(part for part in parents if part not in SPLIT_FOLDERS), name))
    homes = {place.parent for place in places}
    several, differ = len(homes) > 1, len({home.name for home in homes}) > 1
    groups = [_patient(place, several, differ) for place in places]
    if len(set(groups)) == 1 and len(groups) > 1 and not several:
        groups = [None] * len(groups)  # image_1, image_2, …: all one patient says nothing
    # Patients' folders often hold names that are unique only within them.
    stems = [
        place.name
        if not several or place.name.startswith(place.parent.name)
        else f"{place.parent.as_posix()}_{place.name}"
        for place in places
    ]
    records = []
    progress = tqdm(found, "reading masks", unit="mask", disable=None)
    for (image, path), stem, group in zip(progress, stems, groups, strict=True):
        try:
            mask = read_mask(path)
            with readable(image), Image.open(image) as picture:
                width, height = picture.size
                if picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # shown on its side
                    width, height = height, width
            if mask.shape != (height, width):
                size = f"{mask.shape[1]}×{mask.shape[0]}"
                raise InputError(f"{path}: is {size}, but {image} is {width}×{height}")
        except InputError as error:
            skipped[image] = str(error)
            continue
        numbered = re.search(r"_(\d+)$", image.stem)
        parents = image.relative_to(folder).parts[:-1]
        records.append(
            Record(
                name=f"{stem}.png",
                group=group,
                number=int(numbered[1]) if numbered and group is not None else None,
                split=next((SPLIT_FOLDERS[p] for p in parents if p in SPLIT_FOLDERS), None),
                spacing=None,
                labels=annotate({TUMOUR: mask}),
                load=partial(_load, image),
            )
        )
    if len(found) - len(records) > len(records):
        raise InputError(
            f"{folder}: {len(found) - len(records)} of {len(found)} masks cannot be used; "
            f"{next(skipped[image] for image, _ in found if image in skipped)}"
        )
    return Source(records, [TUMOUR], skipped)


def read_mask(path: Path) -> Mask:
    """Reads a mask: what is not zero; in a JPEG, what is brighter than 127.

    Returns:
        bool, shape (H, W).

    Raises:
        InputError: The file cannot be decoded.
    """
    with readable(path), Image.open(path) as file:
        if file.format == "JPEG":  # compression puts small values around every edge
            return to_grey(file) > 127
        image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            colours = np.asarray(image.convert("RGBA"))
            return (colours[..., :3].max(axis=-1) > 0) & (colours[..., 3] > 0)
        return np.atleast_3d(np.asarray(image)).max(axis=-1) != 0


def _load(path: Path) -> Grey:
    with readable(path), Image.open(path) as picture:
        return to_grey(picture)


def _pairs(folder: Path) -> tuple[list[tuple[Path, Path]], dict[Path, str]]:
    """Pairs images with masks.

    Returns:
        The pairs, and path → why it is left out.

    Raises:
        InputError: More than half of the images have no mask.
    """
    pictures = _pictures(folder)
    masks = {_key(path, folder): path for path in pictures if _is_mask(path, folder)}
    images = [(_key(path, folder), path) for path in pictures if not _is_mask(path, folder)]
    found = [(path, masks[key]) for key, path in images if key in masks]
    skipped = {path: "has no mask" for key, path in images if key not in masks}
    if len(skipped) > len(found):
        raise InputError(
            f"{folder}: {len(skipped)} of {len(images)} images have no mask, such as "
            f"{next(iter(skipped))}; add NAME_mask files, or masks/ with the images' names"
        )
    unused = masks.keys() - {key for key, _ in images}
    skipped |= {masks[key]: "is the mask of no image" for key in sorted(unused)}
    return found, skipped


def _pictures(folder: Path) -> list[Path]:
    return [path for path in visible_files(folder) if path.suffix.lower() in PICTURES]


def _is_mask(path: Path, folder: Path) -> bool:
    return path.stem.endswith("_mask") or "masks" in path.relative_to(folder).parts[:-1]


def _key(path: Path, folder: Path) -> PurePath:
    """What an image and its mask have in common: the path without images/, masks/ and _mask."""
    *parents, _ = path.relative_to(folder).parts
    kept = [part for part in parents if part not in ("images", "masks")]
    return PurePath(*kept, path.stem.removesuffix("_mask"))


def _patient(place: PurePath, several: bool, differ: bool) -> str | None:
    if several and place.parent != PurePath():
        return place.parent.name if differ else place.parent.as_posix()
    numbered = re.fullmatch(r"(.+)_\d+", place.name)
    return numbered[1] if numbered else None
