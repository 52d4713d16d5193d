import numpy as np
import pandas as pd
import pytest

from tests.support.masks import NOTHING, square
from tumorseg.evaluation.calibration import THRESHOLDS, Reliability, best_threshold
from tumorseg.evaluation.metrics import count, score


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


@pytest.mark.parametrize(
    ("probabilities", "truth", "best"),
    [
        # The upper half is tumour: from 0.3 on only it is called, up to its own probability.
        ([[0.9], [0.25]], [[1], [0]], 0.5),
        ([[0.4], [0.25]], [[1], [0]], 0.4),
        ([[0.9], [0.8]], [[1], [0]], 0.85),
        # In float32 0.7 is a little less than in float64; the service compares in float32.
        ([[0.7], [0.69]], [[1], [0]], 0.7),
        # Equally good ones, nearest 0.5; all of them where there is nothing to choose.
        ([[0.0], [0.0]], [[0], [0]], 0.5),
        ([[0.32], [0.18]], [[1], [0]], 0.3),
    ],
)
def test_the_best_threshold_has_the_highest_dice(probabilities, truth, best) -> None:
    slices = [np.array(probabilities, np.float32)], [np.array(truth, bool)]
    assert best_threshold(*slices) == best


def test_the_threshold_is_best_on_average_over_slices() -> None:
    rng = np.random.default_rng(0)
    probabilities = [rng.random((16, 16), np.float32) for _ in range(4)]
    truths = [p + rng.normal(0, 0.2, p.shape) > 0.6 for p in probabilities]

    def mean_dice(threshold: float) -> float:
        table = [count(p >= threshold, t) for p, t in zip(probabilities, truths, strict=True)]
        return score(pd.DataFrame(table))["dice"].mean()

    assert best_threshold(probabilities, truths) == max(THRESHOLDS, key=mean_dice)
