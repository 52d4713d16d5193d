"""NIfTI volumes with label volumes, cut into slices as radiologists see them."""

import re
from collections import defaultdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.imaging.nifti import check_image, cut_across, distances, grey_slices, value_slices
from tumorseg.imaging.preprocess import Grey
from tumorseg.importers.reading import (
    Options,
    Record,
    Source,
    annotate,
    pick,
    readable,
    visible_files,
)

LOOKS_FOR = "X.nii.gz with X_seg.nii.gz (or _label, _mask), or imagesTr/ and labelsTr/"
TOLERANCE = 1e-2  # mm between the grids of a volume and its labels
LABEL_ENDINGS = ("seg", "label", "mask")  # the first is preferred
CONTRAST_ENHANCED = ("t1ce", "t1c", "t1gd")


# Its name, its patient (who may have several), its volume and its labels.
Subject = tuple[str, str, Path, Path]


def fits(folder: Path) -> bool:
    """Whether there is a NIfTI file."""
    return bool(_volumes(folder))


def read(folder: Path, options: Options) -> Source:
    """Indexes volumes by their headers, and by their labels, which say what each slice holds.

    Raises:
        InputError: A volume and its labels do not match, or a file cannot be read.
    """
    subjects, skipped = _pairs(folder, options.modality)
    greys = lru_cache(maxsize=1)(_greys)  # records come volume by volume
    records = []
    found: set[int] = set()
    progress = tqdm(subjects, "reading labels", unit="volume", disable=None)
    for name, patient, image, labels in progress:
        axis, spacing = _check(image, labels, options.axis)
        for number, plane in enumerate(_labels(labels, axis)):
            values = {int(value) for value in np.unique(plane)} - {0}
            found |= values
            if options.take(number, bool(values)):
                records.append(
                    Record(
                        name=f"{name}_{axis}_{number:04d}.png",
                        group=patient,
                        number=number,
                        split=None,
                        spacing=spacing,
                        labels=annotate({f"label {v}": plane == v for v in sorted(values)}),
                        load=partial(pick, partial(greys, image, axis), number),
                    )
                )
    return Source(records, [f"label {value}" for value in sorted(found)], skipped)


def _check(volume: Path, labels: Path, axis: str) -> tuple[str, tuple[float, float]]:
    """Compares the grids of a volume and its labels.

    Returns:
        Across which axis slices are cut, and the distances of their rows and columns in mm.
    """
    image = _open(volume)
    grid, other = _canonical_grid(image), _canonical_grid(_open(labels))
    corners = np.array(np.meshgrid(*([0, n - 1] for n in grid.shape))).reshape(3, -1).T
    one, two = (apply_affine(each.affine, corners) for each in (grid, other))
    if grid.shape != other.shape or not np.allclose(one, two, rtol=0, atol=TOLERANCE):
        raise InputError(
            f"{labels}: has shape {other.shape} and {volume} has {grid.shape}, or it lies "
            "elsewhere; resample the labels to the volume"
        )
    chosen = cut_across(image.affine) if axis == "auto" else axis
    row, column = distances(image, chosen)[0]
    return chosen, (round(row, 4), round(column, 4))


def _open(path: Path) -> Any:
    """The image, checked by its header, its values not read yet."""
    with readable(path):
        image = nibabel.load(path)
        check_image(image)
        return image


def _canonical_grid(image: Any) -> Any:
    """The image's grid in canonical order, without its values."""
    nothing = np.broadcast_to(np.uint8(0), image.shape[:3])
    return nibabel.as_closest_canonical(nibabel.Nifti1Image(nothing, image.affine))


def _greys(path: Path, axis: str) -> list[Grey]:
    with readable(path):
        return grey_slices(_open(path), axis)


def _labels(path: Path, axis: str) -> NDArray[np.int32]:
    with readable(path):
        slices = value_slices(_open(path), axis)
    with np.errstate(invalid="ignore"):
        whole = slices.astype(np.int32)
    if not np.array_equal(whole, slices):
        raise InputError(f"{path}: has values that are no labels, since not whole; threshold it")
    return whole


def _volumes(folder: Path) -> list[Path]:
    """All NIfTI files under a folder."""
    return [p for p in visible_files(folder) if p.name.lower().endswith((".nii", ".nii.gz"))]


def _pairs(folder: Path, modality: str | None) -> tuple[list[Subject], dict[Path, str]]:
    """Pairs volumes with label volumes.

    Args:
        folder: Holds `X.nii[.gz]` with `X_seg`, `X_label` or `X_mask`, where several `X_MODALITY`
            may share one label volume (BraTS); or imagesTr/ and labelsTr/ (nnU-Net).
        modality: Which of several volumes to read; None for the contrast-enhanced one.

    Returns:
        The subjects, and path → why it is left out.

    Raises:
        InputError: Most volumes have no labels, or it is unclear which of several volumes to read.
    """
    labels: dict[tuple[Path, str], Path] = {}  # by the images' folder and the subject's name
    skipped: dict[Path, str] = {}
    images = []
    named = sorted((_label_name(path), path) for path in _volumes(folder))
    for (_, name), path in named:
        home = path.parent
        key = (home.with_name("imagesTr") if home.name == "labelsTr" else home, name)
        if not name:
            images.append(path)
        elif key in labels:
            skipped[path] = f"{labels[key].name} is read instead"
        else:
            labels[key] = path
    candidates: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    for path in images:
        name = stem = _stem(path)
        while name and (path.parent, name) not in labels:
            name = name[: max(name.rfind("_"), name.rfind("-"), 0)]
        if name:
            candidates[path.parent, name][stem[len(name) :].lstrip("_-").lower()] = path
        else:
            skipped[path] = "has no label volume"
    chosen = {}
    for key, path in sorted(labels.items()):
        if image := _choose(path, candidates[key], modality):
            chosen[key] = image
        else:
            skipped[path] = f"has no volume{f' {modality}' if modality else ''} beside it"
    if len(skipped) > len(chosen):
        raise InputError(
            f"{folder}: {len(skipped)} volumes stand alone and {len(chosen)} have labels (such as "
            f"{next(iter(skipped))}, which {next(iter(skipped.values()))}); name them X.nii.gz and "
            "X_seg.nii.gz, or use imagesTr/ and labelsTr/"
        )
    several = len({place for place, _ in chosen}) > 1
    subjects = [
        (name, _patient(folder, place, name, several), image, labels[place, name])
        for (place, name), image in chosen.items()
    ]
    return subjects, skipped


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _label_name(path: Path) -> tuple[int, str]:
    """The rank of a label volume's ending and its subject's name; "" for other volumes."""
    if path.parent.name in ("labelsTr", "imagesTr"):
        return 0, _stem(path) if path.parent.name == "labelsTr" else ""
    named = re.fullmatch(rf"(.+)[_-]({'|'.join(LABEL_ENDINGS)})", _stem(path), re.IGNORECASE)
    return (LABEL_ENDINGS.index(named[2].lower()), named[1]) if named else (0, "")


def _choose(labels: Path, images: dict[str, Path], modality: str | None) -> Path | None:
    if modality is not None or not images:
        return images.get((modality or "").lower())
    for wanted in ("", *CONTRAST_ENHANCED, "0000"):
        if wanted in images:
            return images[wanted]
    if len(images) > 1:
        raise InputError(
            f"{labels}: belongs to several volumes ({', '.join(sorted(images))}); choose one with "
            "--modality"
        )
    return next(iter(images.values()))


def _patient(folder: Path, place: Path, name: str, several: bool) -> str:
    inside = place.relative_to(folder)
    for part in inside.parts:
        if part.startswith("sub-"):  # BIDS, where a patient's sessions are folders further down
            return part
    # BraTS since 2023 numbers a patient's visits: BraTS-GLI-00005-000, -001.
    if visit := re.fullmatch(r"(BraTS-\w+-\d+)-\d{3}", name):
        return visit[1]
    return inside.as_posix() if several else name
