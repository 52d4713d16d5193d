import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_metrics import square
from tumorseg.core.errors import InputError
from tumorseg.evaluation.calibration import (
    THRESHOLDS,
    Reliability,
    best_threshold,
    dice_by_threshold,
)
from tumorseg.evaluation.metrics import count, dice

NOTHING = square(0, 0, 0, 0)


def plane(value: float, side: int = 20) -> np.ndarray:
    return np.full((side, side), value, np.float32)


def test_bins_by_hand() -> None:
    found = Reliability(bins=4)
    probability = np.array([[0, 0.1, 0.25, 0.6], [0.7, 0.74, 0.75, 1]], np.float32)
    found.add(probability, np.array([[0, 1, 0, 1], [0, 1, 1, 1]], bool))
    table = found.table().query("region == 'all'")
    assert table["low"].tolist() == [0, 0.25, 0.5, 0.75]
    assert table["high"].tolist() == [0.25, 0.5, 0.75, 1]
    assert table["pixels"].tolist() == [2, 1, 3, 2]
    assert table["mean_probability"].tolist() == pytest.approx([0.05, 0.25, 0.68, 0.875])
    assert table["tumour_fraction"].tolist() == pytest.approx([0.5, 0, 2 / 3, 1])
    # |1 − 0.1|, |0 − 0.25|, |2 − 2.04| and |2 − 1.75|, over 8 pixels
    assert found.ece("all") == pytest.approx((0.9 + 0.25 + 0.04 + 0.25) / 8)


def test_the_table_has_both_regions_and_says_where_nothing_lies() -> None:
    found = Reliability()
    found.add(plane(0.3), NOTHING)
    table = found.table()
    assert set(table) == {
        "region", "low", "high", "pixels", "mean_probability", "tumour_fraction"
    }  # fmt: skip
    assert table["region"].tolist() == ["all"] * 20 + ["near"] * 20
    filled = table[table["pixels"] > 0]
    assert filled[["region", "low", "pixels"]].values.tolist() == [["all", 0.3, 400]]
    assert table["mean_probability"].isna().sum() == table["tumour_fraction"].isna().sum() == 39


def test_slices_add_up() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.random((30, 30), np.float32), rng.random((30, 30)) > 0.5) for _ in range(3)]
    one_by_one, at_once = Reliability(), Reliability()
    for pair in pairs:
        one_by_one.add(*pair)
    at_once.add(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))
    assert one_by_one.sums["all"] == pytest.approx(at_once.sums["all"])
    assert Reliability().sums["all"].sum() == 0  # each has its own histograms


def test_honest_probabilities_are_calibrated_and_bold_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random((400, 400), np.float32)
    truth = rng.random((400, 400)) < probability
    honest, bold = Reliability(), Reliability()
    honest.add(probability, truth)
    bold.add((probability > 0.5).astype(np.float32), truth)
    assert honest.ece("all") < 0.01
    assert bold.ece("all") == pytest.approx(0.25, abs=0.01)


def test_near_is_the_box_of_both_and_a_tenth_more() -> None:
    # Truth in rows 10–19, the call in columns 25–29: a box of 10 × 20 with margins of 1 and 2.
    truth = square(10, 10, 20, 20, side=40)
    probability = plane(0, 40)
    probability[12:15, 25:30] = 0.5
    found = Reliability()
    found.add(probability, truth)
    near = found.table().query("region == 'near'")
    assert near["pixels"].sum() == 12 * 24
    assert found.ece("near") == pytest.approx((100 + 7.5) / (12 * 24))
    assert found.ece("all") == pytest.approx((100 + 7.5) / 1600)


def test_near_ends_at_the_picture_and_leaves_out_slices_without_anything() -> None:
    found = Reliability()
    found.add(plane(0.4), NOTHING)
    assert np.isnan(found.ece("near"))
    found.add(plane(0.4), square(0, 10, 10, 20))
    assert found.table().query("region == 'near'")["pixels"].sum() == 11 * 11
    assert found.table().query("region == 'all'")["pixels"].sum() == 800


def test_a_probability_overshot_by_resizing_falls_into_the_last_bin() -> None:
    found = Reliability()
    found.add(np.nextafter(plane(1), np.float32(2)), ~NOTHING)
    assert found.table().query("region == 'all'")["pixels"].tolist() == [0] * 19 + [400]


@st.composite
def slices(draw) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    exact = np.array([0, *THRESHOLDS, 1], np.float32)
    near = np.concatenate([np.nextafter(exact, np.float32(way)) for way in (-1, 2)]).clip(0, 1)
    values = np.concatenate([exact, near, rng.random(20, np.float32)])
    truth = rng.random(shape) < draw(st.sampled_from([0, 0.3, 1]))
    return rng.choice(values[values <= draw(st.sampled_from([0.04, 0.5, 1]))], shape), truth


@settings(max_examples=100, deadline=None)
@given(st.lists(slices(), min_size=1, max_size=4))
def test_the_histogram_gives_what_comparing_gives(drawn) -> None:
    found = dice_by_threshold(*zip(*drawn, strict=True))
    assert found.shape == (len(drawn), len(THRESHOLDS))
    for (probability, truth), row in zip(drawn, found, strict=True):
        assert probability.dtype == np.float32
        for threshold, value in zip(THRESHOLDS, row, strict=True):
            counts = count(probability >= threshold, truth)
            assert value == dice(counts["tp"], counts["fp"] + counts["fn"])


def test_a_probability_at_the_threshold_is_called() -> None:
    # In float32 0.7 is a little less than in float64; the service compares in float32.
    found = dice_by_threshold([plane(0.7)], [~NOTHING], [0.69, 0.7, 0.71])
    assert found.tolist() == [[1, 1, 0]]


def test_empty_masks_count_as_in_dice() -> None:
    found = dice_by_threshold([plane(0.3), plane(0)], [NOTHING, ~NOTHING], [0.2, 0.4])
    assert found.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("table", "thresholds", "best"),
    [
        ([[0.9, 0.5, 0.0], [0.1, 0.6, 0.9]], [0.3, 0.5, 0.7], 0.5),
        ([[0.9, 0.5, 0.8]], [0.3, 0.5, 0.7], 0.3),
        # Of equals the one nearest to a half.
        ([[0.8] * 19] * 3, THRESHOLDS, 0.5),
        ([[0.8, 0.8, 0.1, 0.2]], [0.1, 0.2, 0.5, 0.6], 0.2),
        ([[0.8, 0.8]], [0.45, 0.55], 0.45),
        ([[0.1, 0.2], [0.7, 0.6]], [0.9, 0.6], 0.6),  # equal but for rounding
    ],
)
def test_the_best_threshold_has_the_highest_mean(table, thresholds, best) -> None:
    assert best_threshold(np.array(table), thresholds) == best


def test_there_is_no_threshold_without_slices() -> None:
    with pytest.raises(InputError, match="validation split is empty"):
        best_threshold(dice_by_threshold([], []))
