"""DICOM series with DICOM segmentations.

Patients' names and identities are written nowhere: a group is a hash of PatientID. That is a
pseudonym: anybody who knows the identity can compute it too.
"""

import hashlib
from collections import defaultdict
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
from tumorseg.imaging.preprocess import Grey
from tumorseg.imaging.series import arrange, grey_slices
from tumorseg.imaging.study import Rejected, silence_readers
from tumorseg.importers.reading import (
    Labels,
    Options,
    Record,
    Source,
    annotate,
    pick,
    readable,
    visible_files,
)

LOOKS_FOR = "DICOM images with a DICOM SEG that refers to them"
TOLERANCE = 1e-2  # mm
# What is kept of each image while a folder is indexed.
_INDEXED = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"),
    *("InstanceNumber", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SliceThickness"),
]


def fits(folder: Path) -> bool:
    """Whether there is a DICOM file, of any name."""
    return any(map(_is_dicom, visible_files(folder)))


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
    labels: dict[str, Labels] = defaultdict(list)  # by SOPInstanceUID
    stacks: dict[str, list[FileDataset]] = {}
    categories: set[str] = set()
    for path in paths:
        names, drawn, absent = _segmentation(path, images)
        categories.update(names)
        for uid, own in drawn.items():
            labels[uid] += own
            stacks.setdefault(images[uid].SeriesInstanceUID, [])
        if absent:
            skipped[path] = f"refers to {absent} images that are not here; the others are read"
    for image in images.values():
        if image.SeriesInstanceUID in stacks:
            stacks[image.SeriesInstanceUID].append(image)
        else:
            skipped[Path(image.filename)] = "is in a series that no segmentation refers to"
    # Records come series by series.
    greys = lru_cache(maxsize=1)(lambda series: _greys(stacks[series]))
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
            identity = str(image.get("PatientID") or image.StudyInstanceUID)
            group = hashlib.sha256(identity.encode()).hexdigest()[:12]
            records.append(
                Record(
                    name=f"patient-{group}_series-{position}_{number:04d}.png",
                    group=group,
                    number=number,
                    split=None,
                    spacing=stack.spacing,
                    labels=labels[image.SOPInstanceUID],
                    load=partial(pick, partial(greys, series), number),
                )
            )
    return Source(records, sorted(categories), skipped)


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
                raise why
            headers.append(file.header)
            stored += list(frames(file))
    with readable(Path(stack[0].filename)):
        return grey_slices(stored, arrange(headers))


def _segmentation(
    path: Path, images: dict[str, FileDataset]
) -> tuple[list[str], dict[str, Labels], int]:
    """Reads a segmentation.

    Returns:
        Its SegmentLabels; SOPInstanceUID → what is drawn on that image; and how many images it
        refers to that are not here.

    Raises:
        InputError: It refers to none of the images, or its frames are on another pixel grid.
    """
    with readable(path):
        file = highdicom.seg.segread(path)
        numbers = [number for number in file.segment_numbers if number > 0]  # 0: background
        names = [str(file.get_segment_description(number).segment_label) for number in numbers]
        uids = [str(uid) for _, _, uid in file.get_source_image_uids()]
        known = [uid for uid in uids if uid in images]
        if not known:
            raise InputError(
                f"{path}: refers to no image that is here; add the series that it was drawn on"
            )
        _check_grid(path, file, images)
        planes = file.get_pixels_by_source_instance(
            known,
            segment_numbers=numbers,
            # Many writers do not state that locations are preserved; the grids were compared.
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )  # (images, H, W, segments)
    drawn = {}
    for uid, plane in zip(known, planes, strict=True):
        united = {name: np.zeros(plane.shape[:2], bool) for name in names}
        for n, name in enumerate(names):  # several segments may have one label
            united[name] |= plane[..., n] >= 0.5
        drawn[uid] = annotate(united)
    return names, drawn, len(uids) - len(known)


def _check_grid(path: Path, file: Any, images: dict[str, FileDataset]) -> None:
    """Raises InputError if a frame has another size or position than the image it is drawn on."""
    for frame in file.PerFrameFunctionalGroupsSequence:
        (place,) = frame.get("PlanePositionSequence") or [{}]
        mine = place.get("ImagePositionPatient")
        for derivation in frame.get("DerivationImageSequence", []):
            for source in derivation.get("SourceImageSequence", []):
                image = images.get(source.ReferencedSOPInstanceUID)
                if image is None:
                    continue
                same = (image.Rows, image.Columns) == (file.Rows, file.Columns)
                if mine and (theirs := image.get("ImagePositionPatient")):
                    one, other = np.array(mine, float), np.array(theirs, float)
                    same = same and np.allclose(one, other, atol=TOLERANCE)
                if not same:
                    raise InputError(
                        f"{path}: lies on another pixel grid than {image.filename}; export it on "
                        "the images' grid"
                    )
