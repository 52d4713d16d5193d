"""Sources of segmentations that are out of the ordinary: their thickness and frames."""

import numpy as np
import pytest

from tests.made_volumes import SHAPE, dicom_bytes, enhanced, read_back, series, series_zip
from tests.serving_model import write_model
from tests.test_seg import marks, planes
from tumorseg.serving.formats.decode import Rejected, decode
from tumorseg.serving.formats.seg import seg_file
from tumorseg.serving.predictor import ModelInfo, load_info


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
