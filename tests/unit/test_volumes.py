import gzip

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests.support import samples
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
    values,
    zipped,
)
from tests.support.serving_model import disc, encode
from tumorseg.imaging.decode import decode

SHUFFLED = (3, 1, 0, 4, 2)


def scaled(stack: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((stack - low) / (high - low), 0, 1) * 255


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, scaled(values(), *np.percentile(values(), (0.5, 99.5)))),
        ({"WindowCenter": [1000, 40], "WindowWidth": [2000, 80]}, scaled(values(), 0, 1999)),
        (
            {"WindowCenter": 1000, "WindowWidth": 700, "VOILUTFunction": "SIGMOID"},
            255 / (1 + np.exp(-4 * (values() - 1000.0) / 700)),
        ),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": -7},
            255 - scaled(values(), *np.percentile(values(), (0.5, 99.5))),
        ),
    ],
    ids=["percentiles", "window", "sigmoid", "inverted"],
)
def test_a_shuffled_series_is_put_in_order_and_windowed(extra, expected):
    study = decode(series_zip(series(**extra), SHUFFLED))
    assert (study.kind, study.spacing, study.thickness) == ("dicom", (0.5, 0.7), 4.0)
    assert len(study.slices) == COUNT and study.slices[0].dtype == np.uint8
    assert np.abs(np.stack(study.slices) - expected).max() <= 1


def test_frames_of_one_file_are_put_in_order_and_have_their_own_windows():
    made = enhanced(SHUFFLED)
    shared = made.SharedFunctionalGroupsSequence[0]
    shared.PixelValueTransformationSequence = [Dataset()]
    shared.PixelValueTransformationSequence[0].RescaleSlope = 2
    shared.PixelValueTransformationSequence[0].RescaleIntercept = -1000
    for number, frame in zip(SHUFFLED, made.PerFrameFunctionalGroupsSequence, strict=True):
        frame.FrameVOILUTSequence = [Dataset()]
        frame.FrameVOILUTSequence[0].WindowCenter = 500 * number + 100
        frame.FrameVOILUTSequence[0].WindowWidth = 300
    for number, plane in enumerate(decode(dicom_bytes(made)).slices):
        rescaled = values()[number] * 2.0 - 1000
        expected = np.clip((rescaled - (500 * number + 99.5)) / 299 + 0.5, 0, 1) * 255
        assert np.abs(plane - expected).max() <= 1


def test_files_of_one_frame_with_groups_are_sorted_by_place_or_else_by_number():
    made = [enhanced(order=(number,), InstanceNumber=number) for number in SHUFFLED]
    expected = decode(series_zip(series()))
    study = decode(series_zip(made))
    assert all(map(np.array_equal, study.slices, expected.slices))
    assert (study.spacing, study.thickness) == (expected.spacing, expected.thickness)
    for dataset in made:
        del dataset.PerFrameFunctionalGroupsSequence
    assert all(map(np.array_equal, decode(series_zip(made)).slices, expected.slices))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_compression_changes_nothing(syntax):
    (dataset,) = series(count=1)
    plain = decode(dicom_bytes(dataset)).slices[0]
    if syntax == JPEG2000Lossless:
        frame = encode(Image.fromarray(values(count=1)[0]), "JPEG2000", no_jp2=True)
        dataset.PixelData = encapsulate([frame])
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset["PixelData"].is_undefined_length = True
    else:
        dataset.compress(syntax)
    assert np.array_equal(decode(dicom_bytes(dataset)).slices[0], plain)


def test_an_uneven_stack_has_no_thickness_and_none_without_place():
    datasets = series()
    datasets[4].ImagePositionPatient = [-10, -12, 30]
    assert decode(series_zip(datasets)).thickness is None
    assert decode(dicom_bytes(series(count=1, SliceThickness=0)[0])).thickness is None
    for dataset in datasets:
        del dataset.ImagePositionPatient, dataset.PixelSpacing
    study = decode(series_zip(datasets))
    assert (study.spacing, study.thickness) == (None, None)
    # Then InstanceNumber counts, which runs against the stack here.
    assert np.array_equal(study.slices[0], decode(series_zip(series())).slices[-1])


def test_what_is_no_image_is_passed_over_in_a_zip():
    datasets = series()
    report = samples.mr_slice("SECRET7", "1.2", "1.3", 0, values()[0])
    del report.PixelData, report.Rows
    masks = samples.segmentation(datasets, np.ones((COUNT, *SHAPE, 1), bool), ["tumour"])
    others = [dicom_bytes(report), dicom_bytes(masks), b"a text", dicom_bytes(datasets[0])]
    study = decode(zipped([*others, *map(dicom_bytes, datasets)]))
    assert len(study.slices) == COUNT


@pytest.mark.parametrize("order", ["RAS", "LPS", "PIR", "SAL", "ASR"])
@pytest.mark.parametrize(
    ("shape", "turn", "spacing", "axis"),
    [
        ((32, 40, 6), 0.0, (0.9, 1.1, 3.0), "axial"),
        ((32, 40, 6), 25.0, (0.9, 1.1, 3.0), "axial"),
        ((32, 6, 40), 0.0, (0.9, 5.0, 1.1), "coronal"),
        ((6, 32, 40), 0.0, (5.0, 0.9, 1.1), "sagittal"),
    ],
    ids=["axial", "turned", "thick coronal", "thick sagittal"],
)
def test_nifti_is_shown_as_it_was_acquired(order, shape, turn, spacing, axis):
    """Thick slices are not cut across, whatever the order of the voxels."""
    stored = nifti_values(shape=shape)
    image = nifti(stored, order, affine(turn, spacing))
    expected = scaled(stored, *np.percentile(stored, (0.5, 99.5)))
    distances = dict(zip(("sagittal", "coronal", "axial"), spacing, strict=True))
    thickness = distances.pop(axis)
    column, row = distances.values()
    for data in (image.to_bytes(), gzip.compress(image.to_bytes())):
        study = decode(data)
        assert len(study.slices) == 6
        for number, grey in enumerate(study.slices):
            assert np.abs(grey - samples.displayed(expected, axis, number)).max() <= 0.51
        assert (*study.spacing, study.thickness) == pytest.approx((row, column, thickness), 1e-5)


def test_other_kinds_of_nifti():
    expected = decode(nifti(nifti_values()).to_bytes())
    second = nifti(nifti_values(), kind=nibabel.Nifti2Image)
    assert all(map(np.array_equal, decode(second.to_bytes()).slices, expected.slices))
    four = nifti(nifti_values())
    four = nibabel.Nifti1Image(np.asarray(four.dataobj)[..., None], four.affine)
    assert all(map(np.array_equal, decode(four.to_bytes()).slices, expected.slices))
    metres = nifti(nifti_values(), place=np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine())
    metres.header.set_xyzt_units("meter")
    assert decode(metres.to_bytes()).thickness == pytest.approx(3.0, rel=1e-5)
    holes = nifti_values().astype(np.float32)
    holes[0, 0], holes[1, 1] = np.nan, np.inf
    grey = decode(nifti(holes).to_bytes()).slices[0]
    assert (grey[-1, -1], grey[-2, -2]) == (0, 255)


@pytest.mark.parametrize(
    ("pixels", "share"),
    [
        (np.dstack([disc()] * 3), 0.0),
        (np.dstack([disc(), disc() // 2, disc()]), 0.12),
        (np.full((40, 40, 3), (200, 30, 30), np.uint8), 1.0),
    ],
    ids=["grey", "a coloured disc", "red"],
)
def test_colour_is_measured(pixels, share):
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 60})):
        found = decode(encode(Image.fromarray(pixels), kind, **options)).colour
        assert found == pytest.approx(share, abs=0.03)
    assert decode(encode(Image.fromarray(disc()))).colour == 0
