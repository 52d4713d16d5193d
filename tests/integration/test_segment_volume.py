"""/segment/volume with real files: what comes back lies where the source does, pixel for pixel."""

import gzip
import io
import json
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.support.made_volumes import (
    affine,
    dicom_bytes,
    nifti,
    series_zip,
)
from tests.support.serving_model import disc, encode
from tests.support.web import blob, dicom_series
from tumorseg.imaging.decode import decode
from tumorseg.inference.predictor import Predictor
from tumorseg.inference.segment import summed_up

COSINES = np.array([[0.8, 0.6, 0], [-0.36, 0.48, 0.8]])  # oblique
ORIGIN, STEP = np.array([-10.0, -12.0, 3.0]), 4 * np.array([0.48, -0.64, 0.6])
SPACING = (0.5, 0.7)  # of rows and columns, in mm
SHUFFLED = (3, 1, 0, 4, 2)


def oblique(**extra: Any) -> list[pydicom.Dataset]:
    """Five slices with discs that differ, from one end of an oblique stack to the other."""
    datasets = dicom_series(5)
    for number, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient = COSINES.ravel().tolist()
        dataset.ImagePositionPatient = np.round(ORIGIN + number * STEP, 6).tolist()
        for keyword, value in extra.items():
            setattr(dataset, keyword, value)
    return datasets


def volume() -> nibabel.Nifti1Image:
    """The same discs as an oblique NIfTI volume, stored in an unusual order."""
    values = np.stack([blob(8 + 3 * n).T for n in range(5)], axis=2).astype(np.int16)
    return nifti(values, "PIR", affine(12))


def send(client: TestClient, data: bytes, **form: str) -> Any:
    return client.post("/segment/volume", files={"file": ("scan", data)}, data=form)


def masks(predictor: Predictor, data: bytes) -> np.ndarray:
    """What the predictor itself finds, bool, shape (slices, H, W); no two slices alike."""
    found = np.stack([predictor.segment(grey).mask for grey in decode(data).slices])
    assert len({mask.sum() for mask in found}) == len(found)
    return found


def test_a_dicom_series_is_answered_on_its_very_geometry(client, predictor):
    datasets = oblique()
    data = series_zip(datasets, SHUFFLED)
    answer = send(client, data)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/dicom"
    expected = masks(predictor, data)
    seg = pydicom.dcmread(io.BytesIO(answer.content))
    assert seg.FrameOfReferenceUID == datasets[0].FrameOfReferenceUID
    assert (seg.Rows, seg.Columns) == (datasets[0].Rows, datasets[0].Columns)
    places = [
        list(group.PlanePositionSequence[0].ImagePositionPatient)
        for group in seg.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(places) == sorted(list(one.ImagePositionPatient) for one in datasets)
    cosines = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    assert list(cosines.ImageOrientationPatient) == list(datasets[0].ImageOrientationPatient)
    again = highdicom.seg.segread(io.BytesIO(answer.content))
    uids = [dataset.SOPInstanceUID for dataset in datasets]
    found = again.get_pixels_by_source_instance(uids, segment_numbers=[1])
    assert np.array_equal(found[..., 0], expected)
    assert again.get_volume().spacing == pytest.approx((4, *SPACING))
    millimetres = float(answer.headers["X-Tumour-Volume-mm3"])
    assert millimetres == pytest.approx(expected.sum() * 4 * SPACING[0] * SPACING[1], abs=1e-3)


def test_a_nifti_volume_is_answered_on_its_very_affine(client, predictor):
    image = volume()
    data = gzip.compress(image.to_bytes())
    sent = nibabel.Nifti1Image.from_bytes(image.to_bytes())
    answer = send(client, data)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/gzip"
    assert answer.headers["X-Inputs-Known"] == "false"
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert found.affine.tobytes() == sent.affine.tobytes()
    assert found.shape == sent.shape
    canonical = np.asarray(nibabel.as_closest_canonical(found).dataobj).astype(bool)
    # As slices are displayed: anterior up, the patient's right on the left.
    shown = canonical[::-1, ::-1].transpose(2, 1, 0)
    assert np.array_equal(shown, masks(predictor, data))


@pytest.mark.parametrize("count", [1, 5], ids=["one slice", "series"])
def test_dicom_is_answered_as_nifti_where_that_is_asked_for(client, predictor, count):
    datasets = oblique()[:count]
    data = dicom_bytes(datasets[0]) if count == 1 else series_zip(datasets, SHUFFLED)
    answer = send(client, data, output="nifti")
    assert answer.status_code == 200, answer.text
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert found.header["sform_code"] == 1 and found.header.get_xyzt_units()[0] == "mm"
    values, expected = np.asarray(found.dataobj), masks(predictor, data)
    assert values.shape == (60, 72, len(datasets))
    # Equation C.7.6.2.1-1 of the standard, by hand: each pixel's place, towards left and posterior.
    to_ras = np.array([-1, -1, 1])
    for number, dataset in enumerate(datasets):
        for row, column in ((0, 0), (30, 25), (71, 59)):
            lps = np.array(dataset.ImagePositionPatient, float)
            lps += COSINES[0] * SPACING[1] * column + COSINES[1] * SPACING[0] * row
            ras = found.affine @ [column, row, number, 1]
            assert ras[:3] == pytest.approx(lps * to_ras, abs=1e-4)
            assert values[column, row, number] == expected[number, row, column]
    assert values.sum() == expected.sum()
    assert float(answer.headers["X-Tumour-Volume-mm3"]) == pytest.approx(
        values.sum() * abs(np.linalg.det(found.affine[:3, :3])), rel=1e-4
    )


@pytest.mark.parametrize(
    ("output", "status"), [("nifti", 200), ("", 200), ("seg", 400), ("dicom", 400)]
)
def test_nifti_is_answered_as_nifti(client, output, status):
    answer = send(client, volume().to_bytes(), output=output)
    assert answer.status_code == status
    assert status == 200 or "`output`" in answer.json()["error"]


def test_a_volume_and_a_picture_are_sent_to_each_other_s_address(client):
    answer = client.post("/segment", files={"file": ("scan.nii", volume().to_bytes())})
    assert answer.status_code == 415
    assert "/segment/volume" in answer.json()["error"]
    answer = send(client, encode(Image.fromarray(disc())))
    assert answer.status_code == 415
    assert "/segment." in answer.json()["error"]


def uneven() -> list[pydicom.Dataset]:
    datasets = oblique()
    datasets[4].ImagePositionPatient = (ORIGIN + 5.5 * STEP).round(6).tolist()
    return datasets


def without(keyword: str) -> list[pydicom.Dataset]:
    datasets = oblique()
    for dataset in datasets:
        del dataset[keyword]
    return datasets


@pytest.mark.parametrize(
    ("datasets", "output", "words"),
    [
        (without("FrameOfReferenceUID"), "", "No DICOM segmentation can refer"),
        (without("ImagePositionPatient"), "seg", "No DICOM segmentation can refer"),
        (without("Modality"), "seg", "No DICOM segmentation can refer"),
        (uneven(), "nifti", "lie evenly"),
        (without("PixelSpacing"), "nifti", "lie evenly"),
    ],
    ids=["no frame of reference", "no position", "no modality", "uneven", "no spacing"],
)
def test_what_cannot_be_answered_is_refused_before_anything_is_computed(
    client, monkeypatch, datasets, output, words
):
    def never(*_: object) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(Predictor, "probabilities", never)
    answer = send(client, series_zip(datasets), output=output)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_another_modality_is_warned_about(client):
    (warning,) = json.loads(send(client, series_zip(oblique(Modality="CT"))).headers["X-Warnings"])
    assert "says CT" in warning and "trained on MR" in warning
    assert send(client, series_zip(oblique())).headers["X-Warnings"] == "[]"
    one = dicom_bytes(oblique(Modality="CT")[0])
    assert client.post("/segment", files={"file": ("a", one)}).json()["warnings"] == [warning]


def test_warnings_of_many_slices_are_summed_up():
    warnings = [["Dim “slice”.", "Odd."], *[["Odd."]] * 4]
    assert summed_up(warnings) == ["Odd.", "1 of 5 slices: Dim “slice”."]
