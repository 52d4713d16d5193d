from math import hypot, isnan

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.masks import NOTHING, square
from tumorseg.evaluation.metrics import distances


def test_a_shifted_square_is_off_by_its_shift() -> None:
    # Two squares of 10 × 10, each with a border of 36 pixels, shifted by 3 rows. Of either border
    # the 10 pixels of the far side are 3 off. The other short side crosses the other square: 4
    # pixels in its middle are 3 off, the rest of it at most 2, like all of the long sides.
    here, there = square(2, 5, 12, 15), square(5, 5, 15, 15)
    found = distances(here, there, None, 2)
    assert found["hd95"] == 3
    assert found["surface_dice"] == pytest.approx((36 - 10 - 4) / 36)
    assert distances(here, there, None, 3)["surface_dice"] == 1


PIXEL = square(1, 1, 2, 2)
BELOW, BESIDE, ACROSS = square(4, 1, 5, 2), square(1, 4, 2, 5), square(4, 5, 5, 6)


@pytest.mark.parametrize(
    ("other", "spacing", "tolerance", "hd95", "share"),
    [
        (ACROSS, None, 4.9, 5, 0),
        (ACROSS, None, 5, 5, 1),
        # Spacing is rows first, and in millimetres.
        (BELOW, (2, 0.5), 1, 6, 0),
        (BESIDE, (2, 0.5), 1, 1.5, 0),
        (ACROSS, (2, 0.5), 6.3, hypot(6, 2), 0),
        (ACROSS, (2, 0.5), 6.4, hypot(6, 2), 1),
        (PIXEL, (0.8, 1.1), 0, 0, 1),
    ],
)
def test_single_pixels(other, spacing, tolerance, hd95, share) -> None:
    expected = {"hd95": pytest.approx(hd95), "surface_dice": share}
    assert distances(PIXEL, other, spacing, tolerance) == expected


@pytest.mark.parametrize("side", [0.4, 0.7])
def test_a_tolerance_of_whole_pixels_holds_whatever_the_spacing(side) -> None:
    for left in range(12):  # side · (left + 3) − side · left is 3 · side but for its last bits
        pair = square(1, left, 2, left + 1), square(1, left + 3, 2, left + 4)
        assert distances(*pair, (side, side), 3 * side)["surface_dice"] == 1


def test_a_few_stray_pixels_do_not_decide() -> None:
    truth = square(2, 2, 18, 18, side=60)
    stray = truth.copy()
    stray[50, 50] = True  # 1 of 61 border pixels
    assert distances(stray, truth, None, 1)["hd95"] == 0
    stray[50, 44:50:2] = True  # 4 of 64
    assert distances(stray, truth, None, 1)["hd95"] > 20


def test_the_edge_of_the_picture_is_a_border() -> None:
    # Both reach the upper edge, where their borders coincide; only the lower side is off.
    found = distances(square(0, 5, 10, 15), square(0, 5, 12, 15), None, 0)
    assert found["hd95"] == 2
    inside = distances(square(3, 5, 13, 15), square(3, 5, 15, 15), None, 0)
    assert found == inside
    # All of the picture: 76 border pixels, 1 off but for the corners, sqrt(2) off. Of 76 sorted
    # values the 95th percentile lies a quarter of the way from the 72nd to the 73rd.
    found = distances(np.ones((20, 20), bool), square(1, 1, 19, 19), None, 0)
    assert found["hd95"] == pytest.approx(1 + 0.25 * (2**0.5 - 1))
    assert found["surface_dice"] == 0


@pytest.mark.parametrize(
    "pair", [(NOTHING, square(1, 1, 5, 5)), (square(1, 1, 5, 5), NOTHING), (NOTHING, NOTHING)]
)
def test_there_is_no_distance_to_nothing(pair) -> None:
    found = distances(*pair, None, 2)
    assert isnan(found["hd95"])
    if pair[0].any() or pair[1].any():
        assert found["surface_dice"] == 0
    else:
        assert isnan(found["surface_dice"])


@st.composite
def pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    shape = draw(st.integers(3, 24)), draw(st.integers(3, 24))
    density = draw(st.sampled_from([0.05, 0.5, 0.95]))
    here, there = rng.random((2, *shape)) < density
    assume(here.any() and there.any())
    return here, there


@settings(max_examples=30, deadline=None)
@given(pairs(), st.sampled_from([None, (1.0, 1.0), (0.7, 1.3)]), st.sampled_from([0, 1, 1.5, 2.1]))
def test_it_is_what_monai_computes(pair, spacing, tolerance) -> None:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    here, there = (torch.from_numpy(mask.astype(np.float32))[None, None] for mask in pair)
    common = {"include_background": True, "spacing": spacing}
    hd95 = compute_hausdorff_distance(here, there, percentile=95, **common).item()
    share = compute_surface_dice(here, there, class_thresholds=[tolerance], **common).item()
    found = distances(*pair, spacing, tolerance)
    assert found == {
        "hd95": pytest.approx(hd95, rel=1e-5),
        "surface_dice": pytest.approx(share, abs=1e-6),
    }
    assert all(type(value) is float for value in found.values())
