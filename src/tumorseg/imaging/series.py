"""DICOM images of one series: put in order by their places, and brought to 8 bits."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from tumorseg.imaging.dicom import (
    DicomFile,
    HeaderReader,
    check_parsed_length,
    frames,
    frames_in,
    unusable,
)
from tumorseg.imaging.display import dicom_grey, limits
from tumorseg.imaging.preprocess import Grey
from tumorseg.imaging.study import Refusal, Rejected, Study, check_count, is_distance

_TOLERANCE = 1e-2  # mm, and for direction cosines
_UNEVEN = 0.02  # of the mean distance of slices: rounded positions differ by less
_DAMAGED = Refusal(400, "The DICOM header's geometry is damaged: export the series again.")
# Where a file of frames, be it only one, keeps what others have at the top.
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}


@dataclass(frozen=True)
class Stack:
    """The frames of a series, arranged along it.

    Attributes:
        order: Of each slice, its number among all frames of the files as they came.
        datasets: Headers without pixels: one a slice in this order, or the one of a multi-frame
            file.
        frames: Of a multi-frame file, the same as `order`; else None.
        headers: Of each slice, flat even where the file has functional groups.
        spacing: Distance of rows and of columns, in mm; None where it is not known.
        thickness: Distance of neighbouring slices, in mm; None where it is not known or not even.
        located: Whether the place, orientation and spacing of every slice are known.
        affine: From voxels (column, row, slice), counted from 0, to mm towards right, anterior and
            superior, shape (4, 4); None where the slices are not known to lie evenly.
    """

    order: list[int]
    datasets: list[Dataset]
    frames: list[int] | None
    headers: list[Dataset]
    spacing: tuple[float, float] | None
    thickness: float | None
    located: bool
    affine: NDArray[np.float64] | None


def dicom_study(files: Iterable[bytes]) -> Study:
    """Decodes one DICOM file, or the files of a zip that are to hold one series.

    Files that are no image (reports, directories, segmentations, pictures in colour) are passed
    over where there are others, and so are files that come again.

    Raises:
        Rejected: There is no grey image, or they are not one consistent stack of slices.
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
    uids = [uid for header in headers if (uid := header.get("SOPInstanceUID"))]
    if len(set(uids)) < len(uids):
        raise Rejected(
            400,
            "Several slices share one identifier (SOPInstanceUID): export the series again, with "
            "an identifier for each.",
        )
    count = sum(map(frames_in, headers))
    check_count(count, int(headers[0].Rows), int(headers[0].Columns))
    stack = arrange(headers)
    greys = grey_slices([frame for file in images for frame in frames(file)], stack)
    return Study(
        "dicom",
        greys,
        stack.spacing,
        stack.thickness,
        source=stack,
        modality=_modality(headers[0]),
    )


def arrange(headers: Sequence[Dataset]) -> Stack:
    """Puts the images of a series into the order of their places, by their headers.

    Without any place they are sorted by InstanceNumber.

    Args:
        headers: Of files of single frames, or of one file of several; at least one.

    Raises:
        Rejected: They are not one stack of slices of one size, orientation and spacing.
    """
    counts = [frames_in(header) for header in headers]
    if len(headers) > 1 and max(counts) > 1:
        raise Rejected(400, "The zip holds files of several frames: send each of them alone.")
    if len({(int(header.Rows), int(header.Columns)) for header in headers}) > 1:
        raise Rejected(400, "The slices differ in size: send one series of one size.")
    if min(counts) < 1:
        raise Rejected(400, "The DICOM file holds no frame: export it again.")
    flat = [one for header in headers for one in _headers(header)]
    places = _places(flat)
    keys = places or [_instance(header) for header in flat]
    order = sorted(range(len(flat)), key=lambda n: keys[n])
    flat = [flat[n] for n in order]
    spacing, thickness = _spacing(flat), _distance(places, flat)
    located = bool(places) and spacing is not None
    return Stack(
        order=order,
        datasets=[headers[n] for n in order] if len(headers) > 1 else list(headers),
        frames=order if max(counts) > 1 else None,
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
    ordered = [stored[n] for n in stack.order]

    @cache
    def range_of() -> tuple[float, float]:
        pairs = zip(ordered, stack.headers, strict=True)
        return limits(np.stack([apply_modality_lut(values, header) for values, header in pairs]))

    with np.errstate(all="ignore"):
        return [
            dicom_grey(apply_modality_lut(values, header), header, range_of)
            for values, header in zip(ordered, stack.headers, strict=True)
        ]


def _headers(dataset: Dataset) -> list[Dataset]:
    """One header a frame, flat even where the file has functional groups."""
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
            for holder in (group, shared):
                check_parsed_length(holder, sequence)
            found = next(iter(group.get(sequence) or shared.get(sequence) or []), dataset)
            for keyword in keywords:
                check_parsed_length(found, keyword)
                # One place at the top says nothing about several frames.
                if keyword in found and not (
                    found is dataset and count > 1 and sequence.startswith("Plane")
                ):
                    header[keyword] = found[keyword]
        headers.append(header)
    return headers


def _numbers(header: Any, keyword: str, length: int) -> tuple[float, ...] | None:
    """The numbers of an element; None where there are none."""
    value = header.get(keyword)
    if value is None or value == "":
        return None
    numbers = tuple(float(number) for number in np.atleast_1d(value))
    if len(numbers) != length or not np.isfinite(numbers).all():
        raise Rejected(*_DAMAGED)
    return numbers


def _instance(header: Any) -> int:
    return int(header.get("InstanceNumber") or 0)


def _places(headers: list[Any]) -> list[float]:
    """Where each slice lies along the stack, in mm; empty where none says."""
    found = [
        (_numbers(h, "ImageOrientationPatient", 6), _numbers(h, "ImagePositionPatient", 3))
        for h in headers
    ]
    if all(axes is None or place is None for axes, place in found):
        return []
    known = [(axes, place) for axes, place in found if axes is not None and place is not None]
    if len(known) < len(found):
        raise Rejected(400, "Some slices lack their position: export the whole series again.")
    first = known[0][0]
    if abs(np.linalg.norm(np.cross(first[:3], first[3:])) - 1) > _TOLERANCE:
        raise Rejected(*_DAMAGED)
    if any(not np.allclose(axes, first, rtol=0, atol=_TOLERANCE) for axes, _ in known):
        raise Rejected(400, "The slices differ in orientation: send one stack without localisers.")
    # Along one normal, so that rounding in the cosines cannot reorder thin slices.
    normal = np.cross(first[:3], first[3:])
    places = [float(np.dot(normal, place)) for _, place in known]
    if any(b - a < _TOLERANCE for a, b in pairwise(sorted(places))):
        raise Rejected(
            400, "Several slices lie at the same position: send one echo, phase or repetition."
        )
    return places


def _spacing(headers: list[Any]) -> tuple[float, float] | None:
    found = [_numbers(header, "PixelSpacing", 2) for header in headers]
    first = found[0]
    if any(
        (spacing is None) != (first is None)
        or (
            first is not None and spacing is not None and not np.allclose(spacing, first, rtol=1e-3)
        )
        for spacing in found
    ):
        raise Rejected(400, "The slices differ in pixel spacing: send one series of one spacing.")
    if first is None:
        return None
    if not all(map(is_distance, first)):
        raise Rejected(*_DAMAGED)
    return first[0], first[1]


def _distance(places: list[float], headers: list[Any]) -> float | None:
    """The distance of neighbouring slices, in mm; a slice alone is as thick as it says."""
    if len(headers) == 1:
        thickness = _numbers(headers[0], "SliceThickness", 1)
        return thickness[0] if thickness is not None and is_distance(thickness[0]) else None
    if not places:
        return None
    gaps = np.diff(sorted(places))
    mean = float(gaps.mean())
    if not is_distance(mean):
        raise Rejected(*_DAMAGED)
    return mean if np.abs(gaps - mean).max() <= _UNEVEN * mean else None


def _affine(headers: list[Any], thickness: float) -> NDArray[np.float64] | None:
    """`Stack.affine` of slices that all have their place; DICOM counts towards left."""
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


def _modality(header: Any) -> str | None:
    """The kind of scanner, such as MR; None where the value is none that the standard allows."""
    text = str(header.get("Modality") or "")
    return text if re.fullmatch("[A-Z]{2,16}", text) else None
