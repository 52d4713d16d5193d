"""From a COCO folder to the manifest: one row an image, and all that later stages need of it."""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import ExifTags, Image
from pycocotools import mask as rle_tools
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path, leads_out, new_array
from tumorseg.core.params import ValidateParams
from tumorseg.data import coco
from tumorseg.data.leakage import SIDE, thumbnail
from tumorseg.data.shapes import box_fill, label_flags
from tumorseg.imaging.preprocess import COLOURED, coloured_share, to_grey

MANIFEST = Path("artifacts/validate/manifest.parquet")
SPLIT_MANIFEST = Path("artifacts/split/manifest.parquet")  # the same, with the splits in use
THUMBNAILS = Path("artifacts/validate/thumbnails.npy")

TEXTS = ("group", "problem", "why", "sha256", "format", "mode", "mask_rle")
BLANK_STD = 1.0  # grey values; a picture with less shows nothing
OUTLIER_MADS = 8.0  # median absolute deviations from the median
FLAT_MAD = 4.0  # grey values; sets that vary less are taken to vary so much
LONGEST_NUMBER = 15  # digits; what is longer is an identifier, not a place in a scan
USUAL_SHARE = 0.9  # where so many images have one size, others are unusual
FORMATS = {"JPEG": {".jpg", ".jpeg"}, "PNG": {".png"}}
MAX_BYTES = 100 * 2**20
MIN_SIDE = 8  # pixels; fewer make no thumbnail
# What a row says of a file or a label that could not be read.
UNREAD: dict[str, Any] = {
    **dict.fromkeys(("sha256", "format", "mode", "problem", "why", "mask_rle")),
    **{"width": 0, "height": 0, "rotated": False, "coloured": False},
    **dict.fromkeys(("mean", "std", "box_fill"), float("nan")),
    **{"tumour_fraction": 0.0, "oddities": ""},
}


class UnusableError(Exception):
    """A file or its labels cannot be used: a finding's name, a sentence, and what is known."""

    def __init__(self, problem: str, why: str, **known: Any) -> None:
        super().__init__(why)
        self.row = known | {"problem": problem, "why": why}


def build_manifest(
    data: Path, params: ValidateParams, thumbnails: Path = THUMBNAILS
) -> pd.DataFrame:
    """Reads a folder of splits into a table, decoding each file once.

    Args:
        data: Holds `train/`, `valid/` and `test/`, each with images and `_annotations.coco.json`.
        params: The validate section.
        thumbnails: Receives an array, uint8 of shape (N, 48, 48), a thumbnail a row.

    Returns:
        One row an image, sorted by split and path, with the columns

        - `path` relative to `data`, `split`, `thumbnail` (its index in the array), `sha256` of the
          file, `format`, `mode` as Pillow names it, `width` and `height` in pixels, `rotated`,
          `coloured`, `mean` and `std` of the grey values;
        - `annotations` (their number), `categories` (names, joined by `; `), `mask_rle` (union
          of the annotations as compressed COCO run lengths), `tumour_fraction` of the image,
          `box_fill` (area over bounding box, of the least box-like annotation; NaN without one);
        - `group` (patient or series, as the JSON or the name gives it), `slice_number`,
          `spacing_mm`, `fold` (of a cross-validation, from the JSON), `taken_in` (by retraining);
        - `oddities`: quality flags of usable images, comma-separated; `wrong_if_zipped`;
        - `problem` and `why`: why the image cannot be used, or None.

    Raises:
        InputError: A split or its JSON is missing or unusable.
    """
    listed = [(split, image) for split in coco.SPLITS for image in _split(data / split)]
    if not listed:
        raise InputError(f"{data}: lists no image at all")
    pattern = re.compile(params.name_pattern)
    paths = [data / split / image.file_name for split, image in listed]
    scan = partial(_scan, root=data, max_side=params.max_side)
    rows = []
    # Decoding and hashing release the interpreter's lock.
    with ThreadPoolExecutor() as pool, atomic_path(thumbnails) as temporary:
        array = new_array(temporary, (len(listed), SIDE, SIDE))
        files = pool.map(scan, paths)
        found = tqdm(files, "reading images", len(listed), leave=False, disable=None)
        for index, ((split, image), (file, small)) in enumerate(zip(listed, found, strict=True)):
            array[index] = small
            row = {"thumbnail": index} | _row(split, image, file, pattern)
            rows.append({k: coco.printable(v) if isinstance(v, str) else v for k, v in row.items()})
        array.flush()
    table = pd.DataFrame(rows)
    table = table.astype(dict.fromkeys(("slice_number", "fold"), "Int64"))
    # Also where all are missing, so that the file holds what the table holds.
    table = table.astype(dict.fromkeys(TEXTS, "str"))
    _mark_outliers(table)
    return table


def _split(folder: Path) -> Iterator[coco.LabelledImage]:
    """The images that the split's JSON lists, then the picture files that it does not list."""
    images = coco.read_split(folder)
    yield from images
    names = {image.file_name for image in images}
    suffixes = set().union(*FORMATS.values())
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        shown = coco.printable(name)
        if path.suffix.lower() in suffixes and shown not in names and not path.is_dir():
            why = f"is not listed in {coco.ANNOTATIONS}" if shown == name else coco.UNUSUAL_NAME
            yield coco.LabelledImage(shown, problem=("unlisted", why))


def _row(
    split: str, image: coco.LabelledImage, file: dict[str, Any], pattern: re.Pattern[str]
) -> dict[str, Any]:
    row = UNREAD | file
    try:
        if image.problem:
            raise UnusableError(*image.problem)
        if not row["problem"]:
            row |= _labels(image, row)
    except UnusableError as error:
        row |= error.row
    match = pattern.match(image.file_name)
    named = match.groupdict() if match else {}
    digits = named.get("number") or ""
    number = int(digits) if 0 < len(digits) <= LONGEST_NUMBER else None
    return row | {
        "path": f"{split}/{image.file_name}",
        "split": split,
        "annotations": len(image.annotations),
        "categories": "; ".join(sorted({name.replace(";", ",") for name in image.labels})),
        "wrong_if_zipped": image.wrong_if_zipped,
        "group": image.group or named.get("group"),
        "slice_number": number if image.slice_number is None else image.slice_number,
        "spacing_mm": "×".join(f"{mm:g}" for mm in image.spacing or ()),
        "fold": image.fold,
        "taken_in": image.taken_in,
    }


def _labels(image: coco.LabelledImage, file: dict[str, Any]) -> dict[str, Any]:
    """What a row says of an image's labels; raises UnusableError."""
    if (image.width, image.height) != (file["width"], file["height"]):
        why = f"is {file['width']}×{file['height']}, but its JSON says {image.width}×{image.height}"
        if file["rotated"]:
            why += "; EXIF turns it, and the JSON must mean the picture as it is shown"
        raise UnusableError("size_mismatch", why)
    try:
        parts = coco.image_rles(image)
    except ValueError as error:
        raise UnusableError("bad_annotation", str(error)) from None
    rle = coco.image_rle(image, parts)
    area = int(rle_tools.area({"size": [image.height, image.width], "counts": rle.encode()}))
    flags = label_flags(image.annotations, image.height, image.width)
    # One by one: given a list, pycocotools cannot count beyond 255.
    if not all(rle_tools.area(part) for part in parts):
        flags.add("empty_label")
    if Path(image.file_name).suffix.lower() not in FORMATS[file["format"]]:
        flags.add("wrong_extension")
    flags |= {name for name in ("rotated", "coloured") if file[name]}
    return {
        "mask_rle": rle,
        "tumour_fraction": area / (image.height * image.width),
        "box_fill": min(map(box_fill, image.annotations, parts), default=float("nan")),
        "oddities": ",".join(sorted(flags)),
    }


def _mark_outliers(table: pd.DataFrame) -> None:
    """Adds the quality flags that depend on the other images to `oddities`."""
    usable = table["problem"].isna()
    found = {"blank": usable & (table["std"] < BLANK_STD)}
    far = pd.Series(data=False, index=table.index)
    for name in ("mean", "std"):
        values = table.loc[usable, name]
        spread = (values - values.median()).abs().median()
        far |= (table[name] - values.median()).abs() > OUTLIER_MADS * max(spread, FLAT_MAD)
    found["intensity_outlier"] = usable & far
    sizes = table["width"].astype(str) + "×" + table["height"].astype(str)
    shares = sizes[usable].value_counts(normalize=True)
    if len(shares) and shares.iloc[0] >= USUAL_SHARE:
        found["size_outlier"] = usable & (sizes != shares.index[0])
    for name, rows in found.items():
        table.loc[rows, "oddities"] = [
            ",".join(sorted({name, *flags.split(",")} - {""}))
            for flags in table.loc[rows, "oddities"]
        ]


def save_manifest(table: pd.DataFrame, path: Path = MANIFEST) -> None:
    """Writes the manifest as Parquet."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def load_manifest(path: Path = SPLIT_MANIFEST) -> pd.DataFrame:
    """Reads a manifest that validate or split wrote.

    Raises:
        InputError: There is none.
    """
    if not path.exists():
        raise InputError(f"{path}: is missing; run `dvc repro {path.parent.name}` first")
    return pd.read_parquet(path)


def _scan(path: Path, root: Path, max_side: int) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Reads one image file.

    Args:
        path: The file.
        root: The folder that it lies in; one that leads out of it is not opened.
        max_side: A picture with a longer side, in pixels, is not decoded.

    Returns:
        Columns of its row, and its thumbnail: uint8, shape (48, 48), black if it cannot be used.
    """
    try:
        return _decode(path, root, max_side)
    except UnusableError as error:
        return error.row, np.zeros((SIDE, SIDE), np.uint8)


def _decode(path: Path, root: Path, max_side: int) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    if leads_out(path, root):
        raise UnusableError("outside", "is a link that leads out of the data folder")
    try:
        size = path.stat().st_size
        if not path.is_file():  # reading a pipe would wait without end
            raise UnusableError("not_a_file", "is no regular file")
        if size > MAX_BYTES:
            raise UnusableError("too_large", f"has more than {MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
    except FileNotFoundError:
        raise UnusableError("missing_file", "is listed, but there is no such file") from None
    except OSError as error:
        raise UnusableError("unreadable", f"cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    unusable = partial(UnusableError, sha256=digest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow only warns about is checked below
            with Image.open(io.BytesIO(content), formats=list(FORMATS)) as picture:
                width, height = picture.size
                if max(width, height) > max_side:
                    why = f"is {width}×{height}; validate.max_side allows {max_side} pixels"
                    raise unusable("too_large", why)
                if min(width, height) < MIN_SIDE:
                    raise unusable("too_small", f"is {width}×{height}, which shows nothing")
                picture.load()
                grey = to_grey(picture)
                row = {
                    "sha256": digest,
                    # A JPEG with several pictures in it, as phones write, calls itself MPO.
                    "format": "JPEG" if picture.format == "MPO" else picture.format,
                    "mode": picture.mode,
                    "width": grey.shape[1],
                    "height": grey.shape[0],
                    "rotated": picture.getexif().get(ExifTags.Base.Orientation, 1) != 1,
                    "coloured": coloured_share(picture) > COLOURED,
                    "mean": float(grey.mean()),
                    "std": float(grey.std()),
                }
    except UnusableError:
        raise
    except Image.UnidentifiedImageError:
        why = "is neither JPEG nor PNG, or has a damaged header"
        raise unusable("unreadable", why) from None
    except Exception as error:  # decoders' errors have nothing else in common
        raise unusable("unreadable", f"cannot be decoded: {error}") from None
    return row, thumbnail(grey)
