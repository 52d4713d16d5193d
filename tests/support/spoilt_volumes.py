"""Volumes that cannot be used: name → bytes, the status and words of the sentence about it."""

import gzip
import struct
import zipfile

import nibabel
import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
    SegmentationStorage,
)

from tests.support.made_volumes import (
    COUNT,
    SHAPE,
    affine,
    dicom_bytes,
    enhanced,
    nifti,
    nifti_values,
    series,
    series_zip,
    zipped,
)
from tests.support.serving_model import disc, encode


def changed(count: int = COUNT, number: int = 0, **extra) -> bytes:
    """A series one of whose slices is different; None removes an element."""
    datasets = series(count=count)
    for keyword, value in extra.items():
        setattr(datasets[number], keyword, value)
        if value is None:
            del datasets[number][keyword]
    return series_zip(datasets)


def coloured() -> bytes:
    (dataset,) = series(count=1)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
    dataset.PlanarConfiguration, dataset.BitsAllocated, dataset.BitsStored = 0, 8, 8
    dataset.HighBit, dataset.PixelData = 7, bytes(SHAPE[0] * SHAPE[1] * 3)
    return dicom_bytes(dataset)


def as_syntax(syntax: str, frame: bytes = b"\0" * 64) -> bytes:
    (dataset,) = series(count=1)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    return dicom_bytes(dataset)


def scans(height: int, width: int, count: int) -> bytes:
    """A grey progressive JPEG whose last scan comes again and again."""
    jpeg = encode(Image.fromarray(disc(height, width)), "JPEG", progressive=True)
    last, end = jpeg.rindex(b"\xff\xda"), len(jpeg) - 2
    return jpeg[:end] + jpeg[last:end] * count + jpeg[end:]


def as_nifti(array: np.ndarray, place: np.ndarray | None = None) -> bytes:
    return nibabel.Nifti1Image(array, affine() if place is None else place).to_bytes()


def header_says(offset: int, layout: str, *numbers: float) -> bytes:
    """A NIfTI file whose header claims something else at one place."""
    data = bytearray(nifti(nifti_values()).to_bytes())
    struct.pack_into(layout, data, offset, *numbers)
    return bytes(data)


def locked() -> bytes:
    data = bytearray(series_zip(series()))
    for start in (b"PK\x03\x04", b"PK\x01\x02"):
        data[data.index(start) + (6 if start[2] == 3 else 8)] |= 1
    return bytes(data)


FILE = dicom_bytes(series(count=1)[0])
ZIP = series_zip(series())
NII = nifti(nifti_values()).to_bytes()
REJECTED = {
    "cut DICOM": (FILE[:-500], 400, "damaged"),
    "DICOM in colour": (coloured(), 415, "in colour"),
    "DICOM segmentation": (changed(1, SOPClassUID=SegmentationStorage), 415, "segmentation"),
    "DICOM without pixels": (changed(1, PixelData=None), 415, "no image"),
    "JPEG Lossless": (as_syntax(JPEGLosslessSV1), 415, "JPEG-LS or RLE"),
    "unknown transfer syntax": (FILE.replace(b"0008.1.2.1\0", b"0008.1.2.9\0"), 415,
         "JPEG-LS or RLE"),
    "deflated": (as_syntax(DeflatedExplicitVRLittleEndian), 415, "deflated"),
    "damaged JPEG frame": (as_syntax(JPEGBaseline8Bit), 400, "damaged"),
    "larger JPEG frame": (as_syntax(JPEGBaseline8Bit, encode(Image.fromarray(disc()), "JPEG")), 400,
         "damaged"),
    "JPEG frame of many scans": (as_syntax(JPEGBaseline8Bit, scans(*SHAPE, 100)), 413,
         "more than 100 scans"),
    "huge RLE frame": (as_syntax(RLELossless, bytes(5 << 20)), 413, "RLE"),
    "too many frames": (dicom_bytes(enhanced(NumberOfFrames=513)), 413, "512 slices"),
    "fewer headers than frames": (dicom_bytes(enhanced(NumberOfFrames=4)), 400, "number of frames"),
    "wide DICOM": (changed(1, Columns=5000), 413, "4096 pixels"),
    "tiny DICOM": (changed(1, Rows=4), 400, "smaller than 16"),
    "position of words": (changed(1, ImagePositionPatient=[1, 2]), 400, "geometry is damaged"),
    "no direction": (changed(1, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), 400, "geometry"),
    "negative spacing": (changed(1, PixelSpacing=[-1, 1]), 400, "geometry"),
    "endless stack": (changed(2, ImagePositionPatient=["0", "0", "1e200"]), 400,
         "geometry is damaged"),
    "two series": (series_zip([*series(1), *series(2)]), 400, "holds 2 series"),
    "slices of two sizes": (series_zip([*series(), *series(count=6, shape=(32, 32))[5:]]), 400,
         "differ in size"),
    "a slice without place": (changed(ImagePositionPatient=None), 400, "lack ImagePositionPatient"),
    "same place": (changed(ImagePositionPatient=[-10, -12, 4.0]), 400, "same position"),
    "another orientation": (changed(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), 400,
         "differ in orientation"),
    "another spacing": (changed(PixelSpacing=[1, 1]), 400, "differ in pixel spacing"),
    "no spacing in one": (changed(PixelSpacing=None), 400, "lack PixelSpacing"),
    "several multi-frames":
         (zipped([dicom_bytes(enhanced(SOPInstanceUID=f"1.{n}")) for n in range(2)]), 400,
         "several frames"),
    "empty zip": (zipped([]), 415, "no DICOM image"),
    "zip of pictures": (zipped([encode(Image.fromarray(disc()))]), 415, "no DICOM image"),
    "zip in a zip": (zipped([ZIP]), 415, "no DICOM image"),
    "cut zip": (ZIP[:-200], 400, "zip is damaged"),
    "locked zip": (locked(), 415, "password"),
    "LZMA": (zipped([FILE], zipfile.ZIP_LZMA), 415, "Deflate"),
    "many files in a zip": (zipped([b""] * 2049), 413, "2048 files"),
    "cut NIfTI": (NII[:-100], 400, "cut short"),
    "cut .nii.gz": (gzip.compress(NII)[:-2000], 400, "damaged"),
    "gzip of a text": (gzip.compress(b"a text" * 99), 415, "neither JPEG nor PNG"),
    "two axes": (as_nifti(np.zeros((40, 40), np.uint8)), 400, "2 axes"),
    "NIfTI in colour": (as_nifti(np.zeros((40, 40, 4), np.dtype([(c, "u1") for c in "RGB"]))), 415,
         "colour or complex"),
    "larger than it is": (header_says(42, "<3h", 4000, 4000, 500), 413, "million voxels"),
    "flat affine": (header_says(280, "<12f", *[0.0] * 12), 400, "where its voxels lie"),
    "tiny voxels": (as_nifti(np.zeros((40, 40, 4)), np.eye(4) / 1e9), 400, "where its voxels lie"),
    "thin NIfTI": (as_nifti(np.zeros((8, 40, 4), np.uint8)), 400, "smaller than 16"),
    "many slices": (as_nifti(np.zeros((16, 16, 600), np.uint8), np.eye(4)), 413, "512 slices"),
}  # fmt: skip
