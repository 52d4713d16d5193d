"""The copy control on pictures of several shapes."""

import numpy as np
import pandas as pd

from tests.test_metrics import square
from tumorseg.data.coco import encode
from tumorseg.evaluation.baselines import copy


def test_a_copied_mask_keeps_its_shape_on_a_picture_of_another_shape() -> None:
    # Similarity is that of padded squares, so a circle must stay one, in the same place.
    mask = np.zeros((60, 100), bool)
    mask[25:35, 45:55] = True
    train = pd.DataFrame(
        {"thumbnail": [0], "height": [60], "width": [100], "mask_rle": [encode(mask)]}
    )
    test = pd.DataFrame({"thumbnail": [1, 1], "height": [100, 200], "width": [60, 200]})
    thumbnails = np.random.default_rng(0).integers(0, 255, (2, 48, 48)).astype(np.uint8)
    upright, double = copy(thumbnails, train, test)
    assert upright.shape == (100, 60)
    assert np.array_equal(upright, square(45, 25, 55, 35, side=100)[:, :60])
    assert np.array_equal(double, square(90, 90, 110, 110, side=200))
