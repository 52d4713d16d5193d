"""NIfTI volumes with label volumes, cut into slices as radiologists see them."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.imaging.intensity import limits, to_uint8
from tumorseg.imaging.reslice import AXES, planes
from tumorseg.importers.nifti_pairs import Subject, pairs, volumes
from tumorseg.importers.reading import Names, readable
from tumorseg.importers.record import Drawn, Options, Record, Source

LOOKS_FOR = "X.nii.gz with X_seg.nii.gz (or _label, _mask), or imagesTr/ and labelsTr/"
Volumes = Callable[[Path], NDArray[Any]]
TOLERANCE = 1e-2  # mm between the grids of a volume and its labels


def fits(folder: Path) -> bool:
    """Whether there is a NIfTI file."""
    return bool(volumes(folder))


def read(folder: Path, options: Options) -> Source:
    """Indexes volumes by their headers, and by their labels, which say what each slice holds.

    Raises:
        InputError: A volume and its labels do not match, or a file cannot be read.
    """
    subjects, skipped = pairs(folder, options.modality)
    # One volume and its labels at a time: records come volume by volume.
    greys = lru_cache(maxsize=1)(partial(_greys, axis=options.axis))
    labels = lru_cache(maxsize=1)(partial(_labels, axis=options.axis))
    new_name = Names()
    records = []
    found: set[int] = set()
    for subject in tqdm(subjects, "reading labels", unit="volume", disable=None):
        spacing = _check(subject, options.axis)
        for number, plane in enumerate(labels(subject.labels)):
            values = {int(value) for value in np.unique(plane)} - {0}
            found |= values
            if options.take(number, bool(values)):
                stem = f"{subject.name}_{options.axis}_{number:04d}"
                records.append(
                    Record(
                        name=new_name(stem, ".png", subject.patient),
                        group=subject.patient,
                        number=number,
                        split=None,
                        spacing=spacing,
                        categories=partial(_names, values),
                        load=partial(_load, subject, number, _names(values), greys, labels),
                    )
                )
    categories = [
        {"id": number, "name": name, "supercategory": "none"}
        for number, name in enumerate(_names(found), start=1)
    ]
    return Source(records, categories, skipped)


def _names(values: set[int]) -> dict[str, int]:
    return {f"label {value}": value for value in sorted(values)}


def _load(
    subject: Subject, number: int, names: dict[str, int], greys: Volumes, labels: Volumes
) -> Drawn:
    plane = labels(subject.labels)[number]
    masks = {name: plane == value for name, value in names.items()}
    return Drawn(greys(subject.image)[number], masks)


def _check(subject: Subject, axis: str) -> tuple[float, float]:
    """Compares the grids of a volume and its labels; returns the spacing of a slice, in mm."""
    image, labels = _grid(subject.image), _grid(subject.labels)
    if image.shape != labels.shape:
        raise InputError(
            f"{subject.labels}: has shape {labels.shape}, but {subject.image} has {image.shape}; "
            "resample the labels to the volume"
        )
    corners = np.array(np.meshgrid(*([0, n - 1] for n in image.shape))).reshape(3, -1).T
    places = [apply_affine(grid.affine, corners) for grid in (image, labels)]
    if not np.allclose(places[0], places[1], rtol=0, atol=TOLERANCE):
        raise InputError(
            f"{subject.labels}: lies elsewhere than {subject.image} (their affines differ); "
            "resample the labels to the volume"
        )
    zooms = [float(zoom) for zoom in image.header.get_zooms()]
    column, row = (zoom for name, zoom in zip(AXES, zooms, strict=True) if name != axis)
    return round(row, 4), round(column, 4)


def _grid(path: Path) -> Any:
    """The volume's grid in canonical order, without its values."""
    with readable(path):
        image = nibabel.load(path)
        if len(image.shape) < 3 or any(length > 1 for length in image.shape[3:]):
            raise InputError(f"{path}: has shape {image.shape}, not three axes; split it first")
        nothing = np.broadcast_to(np.uint8(0), image.shape[:3])
        return nibabel.as_closest_canonical(nibabel.Nifti1Image(nothing, image.affine))


def _planes(path: Path, axis: str) -> NDArray[Any]:
    """The values of a volume, shape (slices, H, W), each slice as it is displayed."""
    with readable(path):
        image = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path}: holds {values.dtype}, not one number a voxel; convert it")
    return planes(values, axis)


def _greys(path: Path, axis: str) -> NDArray[np.uint8]:
    slices = _planes(path, axis)
    return to_uint8(slices, *limits(slices))


def _labels(path: Path, axis: str) -> NDArray[np.int32]:
    slices = _planes(path, axis)
    with np.errstate(invalid="ignore"):
        whole = slices.astype(np.int32)
    if not np.array_equal(whole, slices):
        raise InputError(f"{path}: has values that are no labels, since not whole; threshold it")
    return whole
