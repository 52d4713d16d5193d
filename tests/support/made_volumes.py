"""Small DICOM and NIfTI files as bytes, with the values they were made from."""

import io
import zipfile
from collections.abc import Sequence

import nibabel
import numpy as np
import pydicom
from nibabel import orientations
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, generate_uid

from tests.support.samples import mr_slice

SHAPE = (40, 32)
COUNT = 5


def values(seed: int = 0, count: int = COUNT, shape=SHAPE) -> np.ndarray:
    """Noise of 12 bits, every slice different, shape (slices, H, W)."""
    return np.random.default_rng(seed).integers(0, 4096, (count, *shape)).astype(np.uint16)


def series(seed: int = 0, count: int = COUNT, shape=SHAPE, **extra) -> list[Dataset]:
    """The datasets of one MR series, from one end of the stack to the other."""
    study, uid = (generate_uid(entropy_srcs=[f"{seed} {part}"]) for part in ("study", "series"))
    made = []
    for number, pixels in enumerate(values(seed, count, shape)):
        dataset = mr_slice("SECRET7", study, uid, number, pixels, **extra)
        # The same in every run, so that a fuzzer's input can be made again.
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[f"{seed} {number}"])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        made.append(dataset)
    return made


def dicom_bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def zipped(files: Sequence[bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for number, data in enumerate(files):
            archive.writestr(f"series/{number}", data)
    return file.getvalue()


def series_zip(datasets: Sequence[Dataset], order: Sequence[int] | None = None) -> bytes:
    """A zip of the datasets, in another order if one is given."""
    return zipped([dicom_bytes(datasets[n]) for n in order or range(len(datasets))])


def enhanced(order: Sequence[int] = (2, 0, 4, 1, 3), **extra) -> Dataset:
    """A multi-frame MR whose frame k lies where slice `order[k]` of `values()` does."""
    stack = values()
    made = series(count=1)[0]
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    made.NumberOfFrames = len(order)
    made.PixelData = stack[list(order)].tobytes()
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del made[keyword]
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.7], 4
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    made.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in order:
        frame, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-10, -12, 4.0 * number]
        content.FrameAcquisitionNumber = 1
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = frames
    for keyword, value in extra.items():
        setattr(made, keyword, value)
    return made


def affine(turn: float = 0.0, spacing=(0.9, 1.1, 3.0)) -> np.ndarray:
    """From voxels in canonical order to mm; `turn` in degrees about two axes."""
    a = np.deg2rad(turn)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    made = np.eye(4)
    made[:3, :3] = about_z @ about_x @ np.diag(spacing)
    made[:3, 3] = (-20, -30, 5)
    return made


def nifti(
    canonical: np.ndarray,
    order: str = "RAS",
    place: np.ndarray | None = None,
    kind=nibabel.Nifti1Image,
):
    """An image whose voxels are stored in another order than the canonical one."""
    place = affine() if place is None else place
    change = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(order)
    )
    stored = orientations.apply_orientation(canonical, change)
    image = kind(stored, place @ orientations.inv_ornt_aff(change, canonical.shape))
    image.header["descrip"] = b"SECRET7"
    return image


def nifti_values(seed: int = 0, shape=(32, 40, 6)) -> np.ndarray:
    """Noise in canonical order: right, anterior, superior."""
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def read_back(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))
