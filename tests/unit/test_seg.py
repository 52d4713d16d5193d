"""Answers on the source's own grid, read back by others' readers: pydicom, highdicom, nibabel."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from tests.support.made_volumes import (
    SHAPE,
    affine,
    dicom_bytes,
    enhanced,
    nifti,
    nifti_values,
    read_back,
    series,
    series_zip,
    values,
)
from tests.support.serving_model import write_model
from tumorseg.imaging.decode import decode
from tumorseg.imaging.seg import nifti_file, seg_file
from tumorseg.imaging.study import Rejected, Study
from tumorseg.inference.predictor import ModelInfo, load_info


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return load_info(write_model(tmp_path_factory.mktemp("model")))


def marks(study: Study) -> list[np.ndarray]:
    """Masks that all differ, one a slice, with the last one empty."""
    made = np.zeros((len(study.slices), *study.slices[0].shape), bool)
    for number, mask in enumerate(made[:-1]):
        mask[number : number + 5, 3 : 6 + number] = True
        mask[-1, -2] = True
    return list(made)


def planes(seg: Dataset) -> dict[tuple[float, ...], np.ndarray]:
    """Each frame by its position, by pydicom alone."""
    frames = np.reshape(seg.pixel_array, (-1, seg.Rows, seg.Columns)).astype(bool)
    return {
        tuple(group.PlanePositionSequence[0].ImagePositionPatient): frame
        for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True)
    }


def written(data: bytes, info: ModelInfo) -> Dataset:
    """The segmentation of a DICOM file or zip by `marks`."""
    study = decode(data)
    return read_back(seg_file(study, marks(study), info))


def test_frames_of_one_file_keep_their_places(info):
    made = enhanced()
    study = decode(dicom_bytes(made))
    masks = marks(study)
    found = read_back(seg_file(study, masks, info))
    expected = {(-10.0, -12.0, 4.0 * number): mask for number, mask in enumerate(masks)}
    assert found.FrameOfReferenceUID == made.FrameOfReferenceUID
    by_place = planes(found)
    assert by_place.keys() == expected.keys()
    assert all(np.array_equal(by_place[place], mask) for place, mask in expected.items())


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_way_of_encoding_the_headers_is_read(info, syntax):
    datasets = series()
    plain = decode(series_zip(datasets))
    for dataset, pixels in zip(datasets, values(), strict=True):
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = pixels.astype(">u2").tobytes()
    study = decode(series_zip(datasets))
    assert all(map(np.array_equal, study.slices, plain.slices))
    found = read_back(seg_file(study, marks(study), info))
    assert found.PatientID == "SECRET7" and found.FrameOfReferenceUID
    assert all(map(np.array_equal, planes(found).values(), marks(study)[::-1]))


def test_slices_without_tumour_have_a_frame_too(info):
    for datasets in (series(), series(count=1), [enhanced(order=(1,))]):
        study = decode(series_zip(datasets))
        found = read_back(seg_file(study, [np.zeros(SHAPE, bool)] * len(study.slices), info))
        assert found.NumberOfFrames == len(datasets) and not found.pixel_array.any()


def test_the_model_and_its_use_are_named(info):
    found = written(series_zip(series()), info)
    (segment,) = found.SegmentSequence
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (segment.SegmentAlgorithmType, algorithm.AlgorithmName) == ("AUTOMATIC", info.name)
    assert info.version in algorithm.AlgorithmVersion
    assert info.digest in algorithm.AlgorithmParameters
    assert "Research use only" in found.ContentDescription
    assert "Research use only" in found.SeriesDescription


def test_only_what_the_standard_requires_of_the_patient_is_passed_on(info):
    extras = {
        "OtherPatientIDs": "SECRET1", "PatientAddress": "SECRET2", "PatientComments": "SECRET3",
        "InstitutionName": "SECRET4", "OperatorsName": "SECRET5", "StudyDescription": "SECRET6",
        "DeviceSerialNumber": "SECRET8", "StationName": "SECRET9", "PatientAge": "044Y",
        "Manufacturer": "SECRET0", "ProtocolName": "SECRETA", "SeriesDescription": "SECRETB",
    }  # fmt: skip
    study = decode(series_zip(series(**extras)))
    data = seg_file(study, marks(study), info)
    assert data.count(b"SECRET") == data.count(b"SECRET7") == 1 and b"044Y" not in data
    assert read_back(data).PatientID == "SECRET7"


def test_missing_type_two_values_are_empty(info):
    datasets = series()
    for dataset in datasets:
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID"):
            del dataset[keyword]
        del dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber
    found = written(series_zip(datasets), info)
    assert (found.PatientID, found.StudyDate, found.PatientSex) == ("", "", "")


@pytest.mark.parametrize("order", ["RAS", "LPS", "PIR", "SAL", "ASR", "LAS"])
@pytest.mark.parametrize(
    "place",
    [affine(), affine(30), affine(spacing=(5, 1, 1)), affine(12, (1, 6, 1))],
    ids=["straight", "oblique", "sagittal", "oblique coronal"],
)
def test_nifti_comes_back_on_the_very_same_grid(order, place, tmp_path: Path):
    volume = nifti_values(shape=(32, 40, 36))
    image = nifti(volume, order, place)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 3)
    study = decode(image.to_bytes())
    # What is brightest in the slices must be what is brightest in the file.
    masks = [plane > 200 for plane in study.slices]
    (tmp_path / "mask.nii.gz").write_bytes(nifti_file(study, masks))
    found = nibabel.load(tmp_path / "mask.nii.gz")
    assert found.shape == image.shape and found.get_data_dtype() == np.uint8
    assert np.array_equal(found.affine, image.affine)
    for get in ("get_qform", "get_sform"):
        mine, theirs = getattr(found, get)(coded=True), getattr(image, get)(coded=True)
        assert np.array_equal(mine[0], theirs[0]) and mine[1] == theirs[1]
    for key in ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "dim", "magic"):
        assert np.array_equal(found.header[key], image.header[key]), key
    assert np.isnan(found.header["scl_slope"]) or found.header["scl_slope"] == 1
    stored = np.asarray(image.dataobj)
    low, high = np.percentile(stored, (0.5, 99.5))
    bright = np.round(np.clip((stored - low) / (high - low), 0, 1) * 255) > 200
    assert (np.asarray(found.dataobj).astype(bool) == bright).mean() > 0.999


def test_other_kinds_of_nifti_come_back_as_they_came():
    image = nifti(nifti_values(), "PIR", kind=nibabel.Nifti2Image)  # of 64 bits
    study = decode(image.to_bytes())
    found = nibabel.Nifti2Image.from_bytes(gzip.decompress(nifti_file(study, marks(study))))
    assert np.array_equal(found.affine, image.affine)
    big = nibabel.Nifti1Image(nifti_values(), affine(), nibabel.Nifti1Header(endianness=">"))
    study = decode(big.to_bytes())
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_file(study, marks(study))))
    assert np.allclose(found.affine, big.affine, rtol=1e-6)


def test_texts_of_a_nifti_file_are_not_passed_on():
    four = nibabel.Nifti1Image(nifti_values()[..., None], affine())
    four.header["descrip"], four.header["db_name"] = b"SECRET7", b"SECRET7"
    four.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"SECRET7"))
    study = decode(four.to_bytes())
    plain = gzip.decompress(nifti_file(study, marks(study)))
    found = nibabel.Nifti1Image.from_bytes(plain)
    assert found.shape == four.shape and b"SECRET" not in plain
    assert b"research use only" in plain
    assert nifti_file(study, marks(study)) == nifti_file(study, marks(study))


def test_images_that_no_segmentation_can_refer_to_are_refused(info):
    of_two_studies = series()
    of_two_studies[1].StudyInstanceUID = "1.2.3"
    multi_frame = [enhanced(order=(n,), SOPInstanceUID=f"1.2.{n}") for n in range(3)]
    for datasets in (of_two_studies, multi_frame, series(SOPClassUID="1.2.3.4")):
        study = decode(series_zip(datasets))
        with pytest.raises(Rejected, match="No DICOM segmentation can refer"):
            seg_file(study, marks(study), info)


def test_a_thickness_of_zero_is_the_distance_of_slices(info):
    made = enhanced()
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 0
    for data in (series_zip(series(SliceThickness=0)), dicom_bytes(made)):
        (shared,) = written(data, info).SharedFunctionalGroupsSequence
        assert shared.PixelMeasuresSequence[0].SliceThickness == 4


@pytest.mark.parametrize(
    ("sets", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("", "Doe^Jane"),
        ("ISO_IR 192", "Nguyễn^Anh"),
    ],
    ids=["Japanese", "Latin 1", "empty", "UTF-8"],
)
def test_names_come_back_in_any_character_set(info, sets, name):
    for dataset in (datasets := [*series(), enhanced()]):
        dataset.SpecificCharacterSet = sets
        dataset.PatientName = name
    for data in (series_zip(datasets[:-1]), dicom_bytes(datasets[-1])):
        study = decode(data)
        for _ in range(2):  # the study stays as it was
            found = read_back(seg_file(study, marks(study), info))
            assert (found.SpecificCharacterSet, found.PatientName) == ("ISO_IR 192", name)
            assert found.PatientID == "SECRET7"
