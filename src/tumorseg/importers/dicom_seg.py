"""What a DICOM segmentation says about the images it was drawn on, from its header."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import Mask
from tumorseg.importers.dicom_image import Image
from tumorseg.importers.reading import readable

TOLERANCE = 1e-2  # mm, and for direction cosines


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


def read_header(path: Path, images: dict[str, Image]) -> Segmentation:
    """Reads which frames were drawn on which images.

    Args:
        path: The segmentation's file.
        images: By SOPInstanceUID.

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
        frames = list(dataset.PerFrameFunctionalGroupsSequence)
        present: dict[str, set[str]] = defaultdict(set)
        for frame in frames:
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
    own = (int(dataset.Rows), int(dataset.Columns))
    axes = _item(frame, shared, "PlaneOrientationSequence", "ImageOrientationPatient")
    place = _item(frame, shared, "PlanePositionSequence", "ImagePositionPatient")
    spacing = _item(frame, shared, "PixelMeasuresSequence", "PixelSpacing")
    compared = ((axes, image.axes), (place, image.place), (spacing, image.spacing))
    if own != image.shape or not all(
        np.allclose(np.array(mine, float), theirs, atol=TOLERANCE)
        for mine, theirs in compared
        if mine is not None and theirs is not None
    ):
        raise InputError(
            f"{path}: lies on another pixel grid than {image.path}; export it on the images' grid"
        )


def masks(segmentation: Segmentation, opened: Any, image: Image) -> dict[str, Mask]:
    """The masks of one image: label → bool, shape (H, W).

    Args:
        segmentation: Its header.
        opened: The same as highdicom's object.
        image: One of those it may refer to.

    Raises:
        InputError: The frames cannot be decoded.
    """
    numbers = sorted(segmentation.labels)
    with readable(segmentation.path):
        planes = opened.get_pixels_by_source_instance(
            [image.uid],
            segment_numbers=numbers,
            # Many writers do not state that locations are preserved; the grids were compared.
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )[0]
    found: dict[str, Mask] = {}
    for number, plane in zip(numbers, np.moveaxis(planes, -1, 0), strict=True):
        label, mask = segmentation.labels[number], plane >= 0.5
        found[label] = found[label] | mask if label in found else mask
    return found


def open_pixels(path: Path) -> Any:
    """The segmentation as highdicom's object.

    Raises:
        InputError: It is broken.
    """
    with readable(path):
        # Not lazily: highdicom prints a traceback where a frame cannot be read later.
        return highdicom.seg.segread(path)
