"""DICOM series with DICOM segmentations.

Patients' names and identities are written nowhere: a group is a hash of PatientID. That is a
pseudonym, which whoever knows the identity can compute too.
"""

from collections import defaultdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pydicom
from pydicom.misc import is_dicom
from pydicom.uid import SegmentationStorage
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import Mask
from tumorseg.importers.dicom_image import Image, from_header, grey, stack_limits, unusable
from tumorseg.importers.dicom_seg import Segmentation, masks, open_pixels, read_header
from tumorseg.importers.reading import Names, readable, visible_files
from tumorseg.importers.record import Drawn, Options, Record, Source

SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")  # the second: label maps
LOOKS_FOR = "DICOM images with a DICOM SEG that refers to them"
NEVER = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".json", ".nii", ".gz"}


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
    images: dict[str, Image] = {}
    segmentations: list[Path] = []
    skipped: dict[Path, str] = {}
    for path in tqdm(visible_files(folder), "reading headers", unit="file", disable=None):
        if not _is_dicom(path):
            continue
        with readable(path):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if header.get("SOPClassUID") in SEGMENTATIONS:
                segmentations.append(path)
            elif why := unusable(header):
                skipped[path] = why
            elif (image := from_header(path, header)).uid in images:
                skipped[path] = f"is a copy of {images[image.uid].path}"
            else:
                images[image.uid] = image
    if not segmentations:
        raise InputError(f"{folder}: has DICOM files but no DICOM SEG; add the segmentations")
    drawn: dict[str, list[Segmentation]] = defaultdict(list)  # by series
    doubts = []
    for path in segmentations:
        segmentation = read_header(path, images)
        known = segmentation.present.keys() & images.keys()
        for series in {images[uid].series for uid in known}:
            drawn[series].append(segmentation)
        if absent := len(segmentation.present) - len(known):
            doubts.append(f"{path} refers to {absent} images that are not here")
    skipped |= {
        image.path: "is in a series that no segmentation refers to"
        for image in images.values()
        if image.series not in drawn
    }
    opened = lru_cache(maxsize=4)(open_pixels)
    # One series at a time: records come series by series.
    range_of = lru_cache(maxsize=1)(lambda series: stack_limits(stacks[series]))
    stacks: dict[str, list[Image]] = {series: [] for series in drawn}
    for image in sorted(images.values(), key=Image.along):
        if image.series in stacks:
            stacks[image.series].append(image)
    new_name = Names()
    records = []
    for position, (series, stack) in enumerate(stacks.items(), start=1):
        for number, image in enumerate(stack):
            own = [found for found in drawn[series] if image.uid in found.present]
            stem = f"patient-{image.group}_series-{position}_{number:04d}"
            records.append(
                Record(
                    name=new_name(stem, ".png", image.group),
                    group=image.group,
                    number=number,
                    split=None,
                    spacing=image.spacing,
                    categories=partial(_present, image, own),
                    load=partial(_load, image, own, range_of, opened),
                )
            )
    labels = {label for found in drawn.values() for seg in found for label in seg.labels.values()}
    categories = [
        {"id": number, "name": label, "supercategory": "none"}
        for number, label in enumerate(sorted(labels), start=1)
    ]
    return Source(records, categories, skipped, doubts)


def _present(image: Image, segmentations: list[Segmentation]) -> set[str]:
    return set().union(*(found.present[image.uid] for found in segmentations))


def _load(image: Image, segmentations: list[Segmentation], range_of: Any, opened: Any) -> Drawn:
    return Drawn(grey(image, range_of), _masks(image, segmentations, opened))


def _masks(image: Image, segmentations: list[Segmentation], opened: Any) -> dict[str, Mask]:
    united: dict[str, Mask] = {}
    for segmentation in segmentations:
        for label, mask in masks(segmentation, opened(segmentation.path), image).items():
            united[label] = united[label] | mask if label in united else mask
    return united
