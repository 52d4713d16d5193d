"""Images with a mask file each: NAME and NAME_mask side by side, or images/ and masks/."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import Mask, to_grey
from tumorseg.importers.mask_pairs import any_mask, pairs
from tumorseg.importers.reading import Names, readable
from tumorseg.importers.record import Drawn, Options, Record, Source

LOOKS_FOR = "NAME.tif with NAME_mask.tif (or png, jpg, bmp), or images/ and masks/ with equal names"
TUMOUR = "tumour"


def fits(folder: Path) -> bool:
    """Whether there are image files called NAME_mask, or folders images/ and masks/."""
    return any_mask(folder)


def read(folder: Path, options: Options) -> Source:
    """Indexes a tree of images and masks, reading only headers.

    Raises:
        InputError: More than half of the images have no mask, or a mask has another size.
    """
    found, skipped = pairs(folder)
    new_name = Names()
    records = []
    for pair in found:
        try:
            _check_sizes(pair.image, pair.mask)
        except InputError as error:
            if not options.lenient:
                raise
            skipped[pair.image] = str(error)
            continue
        records.append(
            Record(
                name=new_name(pair.stem, ".png", pair.group),
                group=pair.group,
                number=pair.number,
                split=pair.split,
                spacing=None,
                categories=partial(_present, pair.mask),
                load=partial(_load, pair.image, pair.mask),
            )
        )
    doubts = []
    if repeated := len(found) - len({pair.stem for pair in found}):
        doubts.append(f"{repeated} names occur more than once: does the folder hold a set twice?")
    categories = [{"id": 1, "name": TUMOUR, "supercategory": "none"}]
    return Source(records, categories, skipped, doubts)


def _check_sizes(image: Path, mask: Path) -> None:
    sizes = []
    for path in (image, mask):
        with readable(path), Image.open(path) as picture:
            sizes.append("×".join(map(str, picture.size)))
    if sizes[0] != sizes[1]:
        raise InputError(f"{mask}: is {sizes[1]}, but {image} is {sizes[0]}; export both alike")


def read_mask(path: Path) -> Mask:
    """Reads a mask: what is not zero; in a JPEG, what is above 127.

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


def _present(mask: Path) -> list[str]:
    return [TUMOUR] if read_mask(mask).any() else []


def _load(image: Path, mask: Path) -> Drawn:
    with readable(image), Image.open(image) as picture:
        return Drawn(to_grey(picture), {TUMOUR: read_mask(mask)})
