"""DICOM series with DICOM segmentations.

Patients' names and identities are written nowhere: a group is a hash of PatientID. That is a
pseudonym: anybody who knows the identity can compute it too.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from pydicom.misc import is_dicom
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.imaging.dicom import SEGMENTATIONS, HeaderReader, frames, frames_in, unusable
from tumorseg.imaging.preprocess import Grey, Mask
from tumorseg.imaging.series import arrange, grey_slices
from tumorseg.imaging.study import Rejected, silence_readers
from tumorseg.importers.reading import (
    Options,
    Record,
    Slice,
    Source,
    drawn,
    readable,
    visible_files,
)

LOOKS_FOR = "DICOM images with a DICOM SEG that refers to them"
NEVER = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".json", ".nii", ".gz"}
TOLERANCE = 1e-2  # mm, and for direction cosines
# What is kept of each image while a folder is indexed.
_INDEXED = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"),
    *("InstanceNumber", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SliceThickness"),
]


@dataclass(frozen=True, eq=False)
class Image:
    """A single-frame image, without its pixels.

    Attributes:
        path: Its file.
        header: The elements that order and place it.
        uid: SOPInstanceUID.
        series: SeriesInstanceUID.
        group: Pseudonym of the patient.
    """

    path: Path
    header: Any
    uid: str
    series: str
    group: str


@dataclass(frozen=True)
class Segmentation:
    """A segmentation, without its pixels.

    Attributes:
        path: Its file.
        labels: Segment number → SegmentLabel.
        present: SOPInstanceUID of an image → labels of the frames drawn on it.
    """

    path: Path
    labels: dict[int, str]
    present: dict[str, set[str]]


def fits(folder: Path) -> bool:
    """Whether there is a DICOM file, of any name."""
    return any(
        path.suffix.lower() not in NEVER and _is_dicom(path) for path in visible_files(folder)
    )


def _is_dicom(path: Path) -> bool:
    with readable(path):
        return is_dicom(path)


def read(folder: Path, options: Options) -> Source:
    """Indexes a tree of DICOM files by their headers.

    Every image of a series that a segmentation refers to is a slice, without a mask where no frame
    was drawn on it. Categories are SegmentLabels.

    Raises:
        InputError: There is no segmentation, or one does not match the images.
    """
    silence_readers()
    images, paths, skipped = _index(folder)
    if not paths:
        raise InputError(f"{folder}: has DICOM files but no DICOM SEG; add the segmentations")
    drawn: dict[str, list[Segmentation]] = defaultdict(list)  # by series
    doubts = []
    for path in paths:
        segmentation = _segmentation(path, images)
        known = segmentation.present.keys() & images.keys()
        for series in {images[uid].series for uid in known}:
            drawn[series].append(segmentation)
        if absent := len(segmentation.present) - len(known):
            doubts.append(f"{path} refers to {absent} images that are not here")
    stacks: dict[str, list[Image]] = {series: [] for series in drawn}
    for image in images.values():
        if image.series in stacks:
            stacks[image.series].append(image)
        else:
            skipped[image.path] = "is in a series that no segmentation refers to"
    # One series and its segmentations at a time: records come series by series.
    greys = lru_cache(maxsize=1)(lambda series: _greys(stacks[series]))
    opened = lru_cache(maxsize=4)(_open)
    records = []
    for position, series in enumerate(stacks, start=1):
        try:
            stack = arrange([image.header for image in stacks[series]])
        except Rejected as error:
            skipped |= {image.path: f"is in no stack: {error}" for image in stacks[series]}
            continue
        stacks[series] = [stacks[series][n] for n in stack.order]
        for number, image in enumerate(stacks[series]):
            own = [found for found in drawn[series] if image.uid in found.present]
            records.append(
                Record(
                    name=f"patient-{image.group}_series-{position}_{number:04d}.png",
                    group=image.group,
                    number=number,
                    split=None,
                    spacing=stack.spacing,
                    categories=set().union(*(found.present[image.uid] for found in own)),
                    load=partial(_load, image, number, own, greys, opened),
                )
            )
    labels = {label for found in drawn.values() for seg in found for label in seg.labels.values()}
    return Source(records, sorted(labels), skipped, doubts)


def _index(folder: Path) -> tuple[dict[str, Image], list[Path], dict[Path, str]]:
    """The images by SOPInstanceUID, the segmentations, and why other DICOM files are left out."""
    images: dict[str, Image] = {}
    segmentations: list[Path] = []
    skipped: dict[Path, str] = {}
    for path in tqdm(visible_files(folder), "reading headers", unit="file", disable=None):
        if not _is_dicom(path):
            continue
        with readable(path):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_INDEXED)
            if header.get("SOPClassUID") in SEGMENTATIONS:
                segmentations.append(path)
            elif why := unusable(header):
                skipped[path] = why.sentence
            elif frames_in(header) > 1:
                skipped[path] = "has several frames; only files of one slice are read"
            elif (uid := str(header.SOPInstanceUID)) in images:
                skipped[path] = f"is a copy of {images[uid].path}"
            else:
                identity = str(header.get("PatientID") or header.StudyInstanceUID)
                group = hashlib.sha256(identity.encode()).hexdigest()[:12]
                images[uid] = Image(path, header, uid, str(header.SeriesInstanceUID), group)
    return images, segmentations, skipped


def _greys(stack: list[Image]) -> list[Grey]:
    """The slices of a series, uint8, in its order."""
    reader = HeaderReader()
    headers, stored = [], []
    for image in stack:
        with readable(image.path):
            file = reader.read(image.path.read_bytes())
            if (why := unusable(file.header, file.pixels is not None)) is not None:
                raise Rejected(*why)
            headers.append(file.header)
            stored += list(frames(file))
    with readable(stack[0].path):
        return grey_slices(stored, arrange(headers))


def _segmentation(path: Path, images: dict[str, Image]) -> Segmentation:
    """Reads which frames of a segmentation were drawn on which images.

    Raises:
        InputError: It refers to none of the images, or its frames are on another pixel grid.
    """
    with readable(path):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        # Number 0 is the background of a label map.
        labels = {
            int(segment.SegmentNumber): str(segment.SegmentLabel)
            for segment in dataset.SegmentSequence
            if int(segment.SegmentNumber) > 0
        }
        shared = dataset.SharedFunctionalGroupsSequence[0]
        present: dict[str, set[str]] = defaultdict(set)
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            number = _item(
                frame, shared, "SegmentIdentificationSequence", "ReferencedSegmentNumber"
            )
            here = {labels[int(number)]} if number is not None else set(labels.values())
            for uid in _drawn_on(frame) or _drawn_on(shared):
                present[uid] |= here
                if uid in images:
                    _check_grid(path, dataset, frame, shared, images[uid])
    if not present:
        raise InputError(f"{path}: does not say which images it was drawn on; export it again")
    if not present.keys() & images.keys():
        raise InputError(
            f"{path}: refers to no image that is here; add the series that it was drawn on"
        )
    return Segmentation(path, labels, dict(present))


def _drawn_on(groups: Any) -> list[str]:
    return [
        str(source.ReferencedSOPInstanceUID)
        for derivation in groups.get("DerivationImageSequence", [])
        for source in derivation.get("SourceImageSequence", [])
    ]


def _item(frame: Any, shared: Any, sequence: str, keyword: str) -> Any:
    items = frame.get(sequence) or shared.get(sequence) or [{}]
    return items[0].get(keyword)


def _check_grid(path: Path, dataset: Any, frame: Any, shared: Any, image: Image) -> None:
    size = (int(dataset.Rows), int(dataset.Columns))
    same = size == (int(image.header.Rows), int(image.header.Columns))
    for sequence, keyword in (
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ):
        mine, theirs = _item(frame, shared, sequence, keyword), image.header.get(keyword)
        if mine and theirs:
            one, other = np.array(mine, float), np.array(theirs, float)
            same = same and np.allclose(one, other, atol=TOLERANCE)
    if not same:
        raise InputError(
            f"{path}: lies on another pixel grid than {image.path}; export it on the images' grid"
        )


def _load(
    image: Image,
    number: int,
    segmentations: list[Segmentation],
    greys: Callable[[str], list[Grey]],
    opened: Callable[[Path], Any],
) -> Slice:
    united: dict[str, Mask] = {}
    for segmentation in segmentations:
        for label, mask in _masks(segmentation, opened(segmentation.path), image):
            united[label] = united[label] | mask if label in united else mask
    return drawn(greys(image.series)[number], united)


def _masks(segmentation: Segmentation, opened: Any, image: Image) -> list[tuple[str, Mask]]:
    """The masks of one image, bool, shape (H, W), with their labels."""
    numbers = sorted(segmentation.labels)
    with readable(segmentation.path):
        planes = opened.get_pixels_by_source_instance(
            [image.uid],
            segment_numbers=numbers,
            # Many writers do not state that locations are preserved; the grids were compared.
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )[0]
    return [
        (segmentation.labels[number], planes[..., place] >= 0.5)
        for place, number in enumerate(numbers)
    ]


def _open(path: Path) -> Any:
    """The segmentation as highdicom's object."""
    with readable(path):
        # Not lazily: highdicom prints a traceback where a frame cannot be read later.
        return highdicom.seg.segread(path)
