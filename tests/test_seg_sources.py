"""Sources of segmentations that are out of the ordinary: their names, thickness and frames."""

import numpy as np
import pytest

from tests.made_volumes import SHAPE, dicom_bytes, enhanced, read_back, series, series_zip
from tests.serving_model import write_model
from tests.test_seg import marks, planes
from tumorseg.imaging.decode import Rejected, decode
from tumorseg.imaging.seg import seg_file
from tumorseg.inference.predictor import ModelInfo, load_info


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return load_info(write_model(tmp_path_factory.mktemp("model")))


def test_a_frame_alone_can_be_referred_to_but_not_several_files_of_them(info):
    made = [enhanced(order=(number,), SOPInstanceUID=f"1.2.{number}") for number in range(3)]
    alone = decode(dicom_bytes(made[1]))
    found = read_back(seg_file(alone, [np.ones(SHAPE, bool)], info))
    assert planes(found).keys() == {(-10.0, -12.0, 4.0)} and found.pixel_array.all()
    several = decode(series_zip(made))
    with pytest.raises(Rejected, match="several files of an enhanced kind"):
        seg_file(several, marks(several), info)


def test_a_thickness_of_zero_is_the_distance_of_slices(info):
    made = enhanced()
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 0
    for data in (series_zip(series(SliceThickness=0)), dicom_bytes(made)):
        study = decode(data)
        (shared,) = read_back(seg_file(study, marks(study), info)).SharedFunctionalGroupsSequence
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
