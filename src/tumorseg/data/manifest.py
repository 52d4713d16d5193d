"""From a COCO folder to the manifest: one row an image, and all that later stages need of it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from pycocotools import mask as rle_tools
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path, new_array
from tumorseg.core.params import ValidateParams
from tumorseg.data import coco
from tumorseg.data.geometry import box_fill, oddities
from tumorseg.data.scan import FORMATS, Facts, scan
from tumorseg.data.similarity import SIDE

MANIFEST = Path("artifacts/validate/manifest.parquet")
SPLIT_MANIFEST = Path("artifacts/split/manifest.parquet")  # the same, with the sides in use
THUMBNAILS = Path("artifacts/validate/thumbnails.npy")
MEMORY = Path(".state/scan.db")

TEXTS = ("group", "problem", "why", "sha256", "format", "mode", "mask_rle")
BLANK_STD = 1.0  # grey values; a picture with less shows nothing
OUTLIER_MADS = 8.0  # median absolute deviations from the median
FLAT_MAD = 4.0  # grey values; sets that vary less are taken to vary so much
LONGEST_NUMBER = 15  # digits; what is longer is an identifier, not a place in a scan
USUAL_SHARE = 0.9  # where so many images have one size, others are odd


def build_manifest(
    data: Path, params: ValidateParams, thumbnails: Path = THUMBNAILS, memory: Path = MEMORY
) -> pd.DataFrame:
    """Reads a folder of splits into a table, decoding each file once.

    Args:
        data: Holds `train/`, `valid/` and `test/`, each with images and `_annotations.coco.json`.
        params: The validate section.
        thumbnails: Receives an array, uint8 of shape (N, 48, 48), a thumbnail a row.
        memory: Remembers what unchanged files hold.

    Returns:
        One row an image, sorted by split and path, with the columns

        - `path` relative to `data`, `split`, `thumbnail` (its index in the array), `sha256` of the
          file, `format`, `mode` as Pillow names it, `width` and `height` in pixels, `rotated`,
          `coloured`, `mean` and `std` of the grey values;
        - `annotations` (their number), `categories` (names, joined by `; `), `mask_rle` (union
          of the annotations as compressed COCO run lengths), `tumour_fraction` of the image,
          `box_fill` (area over bounding box, of the least box-like annotation; NaN without one);
        - `group` (patient or series, from the JSON or the name), `slice_number`, `spacing_mm`;
        - `oddities`: names of what is strange but usable, comma-separated; `wrong_if_zipped`;
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
    found = scan(paths, data, params.max_side, memory)
    rows = []
    with atomic_path(thumbnails) as temporary:
        small = new_array(temporary, (len(listed), SIDE, SIDE))
        progress = tqdm(
            found, "reading images", len(listed), unit="image", leave=False, disable=None
        )
        for index, ((split, image), (facts, thumbnail)) in enumerate(
            zip(listed, progress, strict=True)
        ):
            small[index] = thumbnail
            row = {"thumbnail": index} | _row(split, image, facts) | _place(image, pattern)
            rows.append({k: coco.printable(v) if isinstance(v, str) else v for k, v in row.items()})
        small.flush()
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


def _row(split: str, image: coco.LabelledImage, facts: Facts) -> dict[str, Any]:
    row = vars(facts) | {
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
    if facts.problem:
        return row
    if (image.width, image.height) != (facts.width, facts.height):
        said = f"its JSON says {image.width}×{image.height}"
        if facts.rotated:
            said += "; EXIF turns it, and the JSON must mean the picture as it is shown"
        return unusable("size_mismatch", f"is {facts.width}×{facts.height}, but {said}")
    try:
        parts = coco.image_rles(image)
    except ValueError as error:
        return unusable("bad_annotation", str(error))
    fills = list(map(box_fill, image.annotations, parts))
    rle = coco.union(image, parts)
    area = int(rle_tools.area({"size": [image.height, image.width], "counts": rle.encode()}))
    strange = oddities(image)
    # One by one: given a list, pycocotools cannot count beyond 255.
    if not all(rle_tools.area(part) for part in parts):
        strange.add("empty_label")
    if Path(image.file_name).suffix.lower() not in FORMATS[str(facts.format)]:
        strange.add("wrong_extension")
    strange |= {name for name in ("rotated", "coloured") if getattr(facts, name)}
    return row | {
        "mask_rle": rle,
        "tumour_fraction": area / (image.height * image.width),
        "box_fill": min(fills, default=float("nan")),
        "oddities": ",".join(sorted(strange)),
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
