"""From a COCO folder to the manifest: one row an image, and all that later stages need of it."""

import hashlib
import io
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
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
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
FORMATS = {"JPEG": {".jpg", ".jpeg"}, "PNG": {".png"}}
MAX_BYTES = 100 * 2**20
MIN_SIDE = 8  # pixels; fewer make no thumbnail
ORIENTATION = 0x0112  # EXIF's tag
# What Pillow raises over damaged files: its own errors, and whatever its parsers stumble over.
BROKEN = (
    *(OSError, SyntaxError, EOFError, struct.error, zlib.error),
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
)


@dataclass(frozen=True)
class ImageInfo:
    """What is known about one image file.

    Attributes:
        sha256: Of the file's bytes; None where it could not be read.
        format: `JPEG` or `PNG`.
        mode: As Pillow names it.
        width: In pixels, upright as EXIF says.
        height: In pixels.
        rotated: Whether EXIF turns or mirrors it.
        coloured: Whether its channels differ.
        mean: Of the grey values, 0–255.
        std: Of the grey values.
        problem: A finding's name, if the file cannot be used.
        why: A sentence to it.
    """

    sha256: str | None = None
    format: str | None = None
    mode: str | None = None
    width: int = 0
    height: int = 0
    rotated: bool = False
    coloured: bool = False
    mean: float = float("nan")
    std: float = float("nan")
    problem: str | None = None
    why: str | None = None


Scanned = tuple[ImageInfo, NDArray[np.uint8]]
BLACK = np.zeros((SIDE, SIDE), np.uint8)


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
        - `group` (patient or series, from the JSON or the name), `slice_number`, `spacing_mm`;
        - `oddities`: quality flags of usable images, comma-separated; `wrong_if_zipped`;
        - `problem` and `why`: why the image cannot be used, or None.

    Raises:
        InputError: A split or its JSON is missing or unusable.
    """
    missing = [split for split in coco.SPLITS if not (data / split).is_dir()]
    if missing:
        raise InputError(
            f"{data}: has no folder {', '.join(missing)}; it needs train, valid and test, each "
            f"with images and {coco.ANNOTATIONS}"
        )
    listed = [(split, image) for split in coco.SPLITS for image in _split(data / split)]
    if not listed:
        raise InputError(f"{data}: lists no image at all")
    pattern = re.compile(params.name_pattern)
    paths = [data / split / image.file_name for split, image in listed]
    found = scan(paths, data, params.max_side)
    rows = []
    with atomic_path(thumbnails) as temporary:
        array = new_array(temporary, (len(listed), SIDE, SIDE))
        progress = tqdm(
            found, "reading images", len(listed), unit="image", leave=False, disable=None
        )
        for index, ((split, image), (info, small)) in enumerate(zip(listed, progress, strict=True)):
            array[index] = small
            row = {"thumbnail": index} | _row(split, image, info) | _place(image, pattern)
            rows.append({k: coco.printable(v) if isinstance(v, str) else v for k, v in row.items()})
        array.flush()
    table = pd.DataFrame(rows)
    table["slice_number"] = table["slice_number"].astype("Int64")
    # Also where all are missing, so that the file holds what the table holds.
    table = table.astype(dict.fromkeys(TEXTS, "str"))
    _mark_outliers(table)
    return table


def _split(folder: Path) -> Iterator[coco.LabelledImage]:
    images = coco.read_split(folder)
    names = {image.file_name for image in images}
    suffixes = set().union(*FORMATS.values())
    yield from images
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (
            path.suffix.lower() in suffixes
            and coco.printable(name) not in names
            and not path.is_dir()
        ):
            why = f"is not listed in {coco.ANNOTATIONS}"
            if coco.printable(name) != name:
                why = coco.UNUSUAL_NAME
            yield coco.LabelledImage(coco.printable(name), 0, 0, problem=("unlisted", why))


def _row(split: str, image: coco.LabelledImage, info: ImageInfo) -> dict[str, Any]:
    row = vars(info) | {
        "path": f"{split}/{image.file_name}",
        "split": split,
        "annotations": len(image.annotations),
        "categories": "; ".join(sorted(name.replace(";", ",") for name in image.categories)),
        "mask_rle": None,
        "tumour_fraction": 0.0,
        "box_fill": float("nan"),
        "oddities": "",
        "wrong_if_zipped": image.wrong_if_zipped,
    }

    def unusable(problem: str, why: str) -> dict[str, Any]:
        return row | {"problem": problem, "why": why}

    if image.problem:
        return unusable(*image.problem)
    if info.problem:
        return row
    if (image.width, image.height) != (info.width, info.height):
        claim = f"its JSON says {image.width}×{image.height}"
        if info.rotated:
            claim += "; EXIF turns it, and the JSON must mean the picture as it is shown"
        return unusable("size_mismatch", f"is {info.width}×{info.height}, but {claim}")
    try:
        parts = coco.image_rles(image)
    except ValueError as error:
        return unusable("bad_annotation", str(error))
    fills = list(map(box_fill, image.annotations, parts))
    rle = coco.union(image, parts)
    area = int(rle_tools.area({"size": [image.height, image.width], "counts": rle.encode()}))
    flags = label_flags(image.annotations, image.height, image.width)
    # One by one: given a list, pycocotools cannot count beyond 255.
    if not all(rle_tools.area(part) for part in parts):
        flags.add("empty_label")
    if Path(image.file_name).suffix.lower() not in FORMATS[str(info.format)]:
        flags.add("wrong_extension")
    flags |= {name for name in ("rotated", "coloured") if getattr(info, name)}
    return row | {
        "mask_rle": rle,
        "tumour_fraction": area / (image.height * image.width),
        "box_fill": min(fills, default=float("nan")),
        "oddities": ",".join(sorted(flags)),
    }


def _place(image: coco.LabelledImage, pattern: re.Pattern[str]) -> dict[str, Any]:
    match = pattern.match(image.file_name)
    named = match.groupdict() if match else {}
    number = image.slice_number
    digits = named.get("number")
    if number is None and digits and len(digits) <= LONGEST_NUMBER:
        number = int(digits)
    spacing = "" if image.spacing is None else "×".join(f"{mm:g}" for mm in image.spacing)
    return {
        "group": image.group or named.get("group"),
        "slice_number": number,
        "spacing_mm": spacing,
    }


def _mark_outliers(table: pd.DataFrame) -> None:
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
        for index in table.index[rows]:
            table.loc[index, "oddities"] = ",".join(
                sorted({name, *str(table.loc[index, "oddities"]).split(",")} - {""})
            )


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


def scan(paths: Iterable[Path], root: Path, max_side: int) -> Iterator[Scanned]:
    """Reads image files on all cores, in their order.

    Args:
        paths: The files; one that is missing or broken gets a problem, not an exception.
        root: The folder that they lie in; one that leads out of it is not opened.
        max_side: A picture with a longer side, in pixels, is not decoded.

    Yields:
        Its properties and thumbnail, uint8 of shape (48, 48), black where there is a problem.
    """
    with ThreadPoolExecutor() as pool:  # decoding and hashing release the interpreter's lock
        yield from pool.map(lambda path: _scan(path, root, max_side), paths)


def _scan(path: Path, root: Path, max_side: int) -> Scanned:
    digest = None

    def unusable(problem: str, why: str) -> Scanned:
        return ImageInfo(sha256=digest, problem=problem, why=why), BLACK

    if leads_out(path, root):
        return unusable("outside", "is a link that leads out of the data folder")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            return unusable("not_a_file", "is no regular file")
        if status.st_size > MAX_BYTES:
            return unusable("too_large", f"has more than {MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
    except FileNotFoundError:
        return unusable("missing_file", "is listed, but there is no such file")
    except OSError as error:
        return unusable("unreadable", f"cannot be read: {error.strerror}")
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return unusable("unreadable", "is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow only warns about is checked below
            with Image.open(io.BytesIO(content), formats=list(FORMATS)) as picture:
                width, height = picture.size
                if max(width, height) > max_side:
                    allowed = f"validate.max_side allows {max_side} pixels"
                    return unusable("too_large", f"is {width}×{height}; {allowed}")
                if min(width, height) < MIN_SIDE:
                    return unusable("too_small", f"is {width}×{height}, which shows nothing")
                picture.load()
                rotated = picture.getexif().get(ORIENTATION, 1) != 1
                # A JPEG with several pictures in it, as phones write, calls itself MPO.
                kind = "JPEG" if picture.format == "MPO" else picture.format
                mode, grey = picture.mode, to_grey(picture)
                coloured = coloured_share(picture) > COLOURED
    except Image.UnidentifiedImageError:
        damaged = content.startswith(SIGNATURES)
        why = "has a damaged header" if damaged else "is neither JPEG nor PNG"
        return unusable("unreadable", why)
    except Image.DecompressionBombError:
        return unusable("too_large", "claims more pixels than are safe to decode")
    except BROKEN as error:
        return unusable("unreadable", f"cannot be decoded: {error}")
    info = ImageInfo(
        sha256=digest,
        format=kind,
        mode=mode,
        width=grey.shape[1],
        height=grey.shape[0],
        rotated=rotated,
        coloured=coloured,
        mean=float(grey.mean()),
        std=float(grey.std()),
    )
    return info, thumbnail(grey)
