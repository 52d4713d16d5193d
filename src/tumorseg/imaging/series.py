"""DICOM images of one series: sorted by position and brought to 8 bits."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from tumorseg.imaging.dicom import DicomFile, HeaderReader, frames, frames_in, unusable
from tumorseg.imaging.display import dicom_grey, limits, window
from tumorseg.imaging.preprocess import Grey
from tumorseg.imaging.study import Refusal, Rejected, Study, check_size, is_distance

_TOLERANCE = 1e-2  # mm, and for direction cosines
_UNEVEN = 0.02  # of the mean distance of slices: rounded positions differ by less
_DAMAGED = Refusal(400, "The DICOM header's geometry is damaged: export the series again.")
# Where a multi-frame file, even of one frame, keeps what other files have at the top.
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}


@dataclass(frozen=True)
class Stack:
    """The frames of a series, sorted along it.

    Attributes:
        order: Index of each slice among all frames of the files as they were given.
        datasets: Headers without pixels: one per slice in this order, or that of the one
            multi-frame file.
        headers: One per slice, flat even where the file has functional groups.
        spacing: Distance of rows and of columns, in mm; None if unknown.
        thickness: Distance of neighbouring slices, in mm; None if unknown or not constant.
        located: Whether position, orientation and spacing of every slice are known.
        affine: From voxels (column, row, slice), counted from 0, to mm towards right, anterior and
            superior, shape (4, 4); None if the slices are not known to be evenly spaced.
    """

    order: list[int]
    datasets: list[Dataset]
    headers: list[Dataset]
    spacing: tuple[float, float] | None
    thickness: float | None
    located: bool
    affine: NDArray[np.float64] | None


def dicom_study(files: Iterable[bytes]) -> Study:
    """Decodes one DICOM file, or the files of a zip with one series.

    Duplicates are ignored, and so are files without a grey image (reports, directories,
    segmentations, colour pictures) where there are others.

    Raises:
        Rejected: There is no grey image, or the images are not one consistent stack of slices.
    """
    reader = HeaderReader()
    images: list[DicomFile] = []
    refusal = Refusal(415, "The zip holds no DICOM image: zip the files of one series.")
    for data in dict.fromkeys(files):
        if data[128:132] != b"DICM":
            continue
        file = reader.read(data)
        if (why := unusable(file.header, file.pixels is not None)) is not None:
            refusal = why
        else:
            images.append(file)
    if not images:
        raise Rejected(*refusal)
    headers = [file.header for file in images]
    series = {str(header.get("SeriesInstanceUID", "")) for header in headers}
    if len(series) > 1:
        raise Rejected(400, f"The zip holds {len(series)} series: send them one by one.")
    check_size(int(headers[0].Columns), int(headers[0].Rows), sum(map(frames_in, headers)))
    stack = arrange(headers)
    greys = grey_slices([frame for file in images for frame in frames(file)], stack)
    modality = str(headers[0].get("Modality") or "")
    return Study(
        "dicom",
        greys,
        stack.spacing,
        stack.thickness,
        source=stack,
        # Only what the standard allows: warnings quote it.
        modality=modality if re.fullmatch("[A-Z]{2,16}", modality) else None,
    )


def arrange(headers: Sequence[Dataset]) -> Stack:
    """Sorts the images of a series by position, or by InstanceNumber if no position is known.

    Args:
        headers: Of single-frame files, or of one multi-frame file; at least one.

    Raises:
        Rejected: They are not one stack of slices of one size, orientation and spacing.
    """
    counts = [frames_in(header) for header in headers]
    if len(headers) > 1 and max(counts) > 1:
        raise Rejected(400, "The zip holds files of several frames: send each of them alone.")
    if len({(int(header.Rows), int(header.Columns)) for header in headers}) > 1:
        raise Rejected(400, "The slices differ in size: send one series of one size.")
    flat = [one for header in headers for one in _headers(header)]
    places = _places(flat)
    keys = [int(h.get("InstanceNumber") or 0) for h in flat] if places is None else places
    order = np.argsort(keys, kind="stable").tolist()
    flat = [flat[n] for n in order]
    spacing, thickness = _spacing(flat), _thickness(places, flat)
    located = places is not None and spacing is not None
    return Stack(
        order=order,
        datasets=[headers[n] for n in order] if len(headers) > 1 else list(headers),
        headers=flat,
        spacing=spacing,
        thickness=thickness,
        located=located,
        affine=_affine(flat, thickness) if located and thickness is not None else None,
    )


def grey_slices(stored: Sequence[NDArray[Any]], stack: Stack) -> list[Grey]:
    """Brings a series to 8 bits, slice by slice in the order of the stack.

    Each is shown in its window, or else between the percentiles of the whole series; air is black.

    Args:
        stored: From `frames`, shape (H, W) each, in the order in which the headers were arranged.
        stack: From `arrange`.

    Returns:
        uint8, shape (H, W) each.
    """
    pairs = [(stored[n], header) for n, header in zip(stack.order, stack.headers, strict=True)]
    low_high = (0.0, 0.0)
    with np.errstate(all="ignore"):
        if any(window(header) is None for header in stack.headers):
            low_high = limits(np.stack([apply_modality_lut(*pair) for pair in pairs]))
        return [
            dicom_grey(apply_modality_lut(values, header), header, *low_high)
            for values, header in pairs
        ]


def _headers(dataset: Dataset) -> list[Dataset]:
    """One header per frame, flat even where the file has functional groups."""
    nothing = Dataset()
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or []), nothing)
    each = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    count = frames_in(dataset)
    if count == 1 and not shared and not each:
        return [dataset]
    if each and len(each) != count:
        raise Rejected(400, "The DICOM file has headers for another number of frames: export it.")
    headers = []
    for group in each or [nothing] * count:
        header = Dataset()
        header.PhotometricInterpretation = dataset.PhotometricInterpretation
        if count == 1:
            header.InstanceNumber = dataset.get("InstanceNumber")
        for sequence, keywords in _GROUPS.items():
            found = next(iter(group.get(sequence) or shared.get(sequence) or []), dataset)
            if found is dataset and count > 1 and sequence.startswith("Plane"):
                continue  # one position at the top is not that of several frames
            for keyword in keywords:
                if keyword in found:
                    header[keyword] = found[keyword]
        headers.append(header)
    return headers


def _values(headers: list[Dataset], keyword: str, length: int) -> NDArray[np.float64] | None:
    """The numbers of one element, shape (slices, length); None if no slice has it."""
    found = [np.atleast_1d(value) for h in headers if (value := h.get(keyword)) not in (None, "")]
    if not found:
        return None
    if len(found) < len(headers):
        raise Rejected(400, f"Some slices lack {keyword}: export the whole series again.")
    if any(len(value) != length for value in found):
        raise Rejected(*_DAMAGED)
    values = np.array(found, np.float64)
    if not np.isfinite(values).all():
        raise Rejected(*_DAMAGED)
    return values


def _places(headers: list[Dataset]) -> NDArray[np.float64] | None:
    """The position of each slice along their common normal, in mm; None if unknown."""
    positions = _values(headers, "ImagePositionPatient", 3)
    axes = _values(headers, "ImageOrientationPatient", 6)
    if positions is None or axes is None:
        return None
    # Along one normal, so that rounding in the cosines cannot reorder thin slices.
    normal = np.cross(axes[0, :3], axes[0, 3:])
    if abs(np.linalg.norm(normal) - 1) > _TOLERANCE:
        raise Rejected(*_DAMAGED)
    if not np.allclose(axes, axes[0], rtol=0, atol=_TOLERANCE):
        raise Rejected(400, "The slices differ in orientation: send one stack without localisers.")
    places = positions @ normal
    if (np.diff(np.sort(places)) < _TOLERANCE).any():
        raise Rejected(
            400, "Several slices lie at the same position: send one echo, phase or repetition."
        )
    return places


def _spacing(headers: list[Dataset]) -> tuple[float, float] | None:
    spacing = _values(headers, "PixelSpacing", 2)
    if spacing is None:
        return None
    if not np.allclose(spacing, spacing[0], rtol=1e-3):
        raise Rejected(400, "The slices differ in pixel spacing: send one series of one spacing.")
    row, column = map(float, spacing[0])
    if not (is_distance(row) and is_distance(column)):
        raise Rejected(*_DAMAGED)
    return row, column


def _thickness(places: NDArray[np.float64] | None, headers: list[Dataset]) -> float | None:
    """The distance of neighbouring slices, in mm; SliceThickness for a single slice."""
    if len(headers) == 1:
        stated = _values(headers, "SliceThickness", 1)
        return float(stated[0, 0]) if stated is not None and is_distance(stated[0, 0]) else None
    if places is None:
        return None
    gaps = np.diff(np.sort(places))
    mean = float(gaps.mean())
    if not is_distance(mean):
        raise Rejected(*_DAMAGED)
    return mean if np.abs(gaps - mean).max() <= _UNEVEN * mean else None


def _affine(headers: list[Dataset], thickness: float) -> NDArray[np.float64] | None:
    """`Stack.affine` of slices with known positions; DICOM counts towards left and posterior."""
    cosines = np.reshape(headers[0].ImageOrientationPatient, (2, 3)).astype(float)
    down, across = map(float, headers[0].PixelSpacing)
    places = np.array([header.ImagePositionPatient for header in headers], float)
    step = thickness * np.cross(*cosines)
    if len(places) > 1:
        step = (places[-1] - places[0]) / (len(places) - 1)
    even = places[0] + np.arange(len(places))[:, None] * step
    if np.abs(places - even).max() > _UNEVEN * thickness:
        return None
    affine = np.eye(4)
    affine[:3] = np.stack([cosines[0] * across, cosines[1] * down, step, places[0]], axis=1)
    affine[:2] *= -1
    return affine
