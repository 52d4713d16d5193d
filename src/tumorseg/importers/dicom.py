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
from pydicom.dataset import FileDataset
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
# Where the frames of a segmentation keep what images have at the top.
_PLACES = {
    "PlaneOrientationSequence": "ImageOrientationPatient",
    "PlanePositionSequence": "ImagePositionPatient",
    "PixelMeasuresSequence": "PixelSpacing",
}
Series = Callable[[str], list[Grey]]  # SeriesInstanceUID → its slices, shape (H, W) each


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
    segmentations = [_segmentation(path, images) for path in paths]
    doubts = [
        f"{each.path} refers to {absent} images that are not here"
        for each in segmentations
        if (absent := len(each.present.keys() - images.keys()))
    ]
    stacks: dict[str, list[FileDataset]] = {
        images[uid].SeriesInstanceUID: []
        for each in segmentations
        for uid in each.present
        if uid in images
    }
    for image in images.values():
        if image.SeriesInstanceUID in stacks:
            stacks[image.SeriesInstanceUID].append(image)
        else:
            skipped[Path(image.filename)] = "is in a series that no segmentation refers to"
    # One series and its segmentations at a time: records come series by series.
    greys = lru_cache(maxsize=1)(lambda series: _greys(stacks[series]))
    opened = lru_cache(maxsize=4)(_open)
    records = []
    for position, series in enumerate(stacks, start=1):
        try:
            stack = arrange(stacks[series])
        except Rejected as error:
            skipped |= {
                Path(image.filename): f"is in no stack: {error}" for image in stacks[series]
            }
            continue
        stacks[series] = [stacks[series][n] for n in stack.order]
        for number, image in enumerate(stacks[series]):
            uid, group = image.SOPInstanceUID, _patient(image)
            own = [each for each in segmentations if uid in each.present]
            records.append(
                Record(
                    name=f"patient-{group}_series-{position}_{number:04d}.png",
                    group=group,
                    number=number,
                    split=None,
                    spacing=stack.spacing,
                    categories=set().union(*(each.present[uid] for each in own)),
                    load=partial(_load, series, number, uid, own, greys, opened),
                )
            )
    labels = {label for each in segmentations for label in each.labels.values()}
    return Source(records, sorted(labels), skipped, doubts)


def _patient(header: FileDataset) -> str:
    identity = str(header.get("PatientID") or header.StudyInstanceUID)
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def _index(folder: Path) -> tuple[dict[str, FileDataset], list[Path], dict[Path, str]]:
    """The images by SOPInstanceUID, the segmentations, and why other DICOM files are left out."""
    images: dict[str, FileDataset] = {}
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
            elif header.SOPInstanceUID in images:
                skipped[path] = f"is a copy of {images[header.SOPInstanceUID].filename}"
            else:
                images[header.SOPInstanceUID] = header
    return images, segmentations, skipped


def _greys(stack: list[FileDataset]) -> list[Grey]:
    """The slices of a series, uint8, in its order."""
    reader = HeaderReader()
    headers, stored = [], []
    for image in stack:
        path = Path(image.filename)
        with readable(path):
            file = reader.read(path.read_bytes())
            if (why := unusable(file.header, file.pixels is not None)) is not None:
                raise Rejected(*why)
            headers.append(file.header)
            stored += list(frames(file))
    with readable(Path(stack[0].filename)):
        return grey_slices(stored, arrange(headers))


def _segmentation(path: Path, images: dict[str, FileDataset]) -> Segmentation:
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


def _check_grid(path: Path, dataset: Any, frame: Any, shared: Any, image: FileDataset) -> None:
    same = (dataset.Rows, dataset.Columns) == (image.Rows, image.Columns)
    for sequence, keyword in _PLACES.items():
        mine, theirs = _item(frame, shared, sequence, keyword), image.get(keyword)
        if mine and theirs:
            one, other = np.array(mine, float), np.array(theirs, float)
            same = same and np.allclose(one, other, atol=TOLERANCE)
    if not same:
        raise InputError(
            f"{path}: lies on another pixel grid than {image.filename}; export it on the images' "
            "grid"
        )


def _load(
    series: str,
    number: int,
    uid: str,
    segmentations: list[Segmentation],
    greys: Series,
    opened: Callable[[Path], Any],
) -> Slice:
    grey = greys(series)[number]
    masks: dict[str, Mask] = {}
    for segmentation in segmentations:
        numbers = sorted(segmentation.labels)
        with readable(segmentation.path):
            planes = opened(segmentation.path).get_pixels_by_source_instance(
                [uid],
                segment_numbers=numbers,
                # Many writers do not state that locations are preserved; the grids were compared.
                ignore_spatial_locations=True,
                assert_missing_frames_are_empty=True,
            )[0]
        for place, segment in enumerate(numbers):
            label = segmentation.labels[segment]
            masks[label] = masks.get(label, False) | (planes[..., place] >= 0.5)
    return drawn(grey, masks)


def _open(path: Path) -> Any:
    """The segmentation as highdicom's object."""
    with readable(path):
        # Not lazily: highdicom prints a traceback where a frame cannot be read later.
        return highdicom.seg.segread(path)
