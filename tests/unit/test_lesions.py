from math import isnan

import numpy as np
import pandas as pd
import pytest

from tests.support.masks import NOTHING, square
from tumorseg.evaluation.metrics import detection, lesions


def counts(lesions: int, found: int, calls: int, right: int) -> dict[str, int]:
    return {"lesions": lesions, "lesions_found": found, "calls": calls, "calls_right": right}


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (square(0, 0, 5, 5), square(0, 0, 5, 5), counts(1, 1, 1, 1)),
        (square(0, 0, 5, 5), square(9, 9, 14, 14), counts(1, 0, 1, 0)),
        (NOTHING, square(0, 0, 5, 5), counts(1, 0, 0, 0)),
        (square(0, 0, 5, 5), NOTHING, counts(0, 0, 1, 0)),
        (NOTHING, NOTHING, counts(0, 0, 0, 0)),
        # One call over two lesions finds both.
        (square(0, 0, 20, 5), square(0, 0, 5, 5) | square(9, 0, 14, 5), counts(2, 2, 1, 1)),
        # Two calls in one lesion, and a third beside it.
        (
            square(0, 0, 3, 5) | square(5, 0, 8, 5) | square(0, 15, 3, 18),
            square(0, 0, 8, 5),
            counts(1, 1, 3, 2),
        ),
        # A small call inside a large lesion is right, yet does not find it: 9 of 400 pixels.
        (square(0, 0, 3, 3), square(0, 0, 20, 20), counts(1, 0, 1, 1)),
        # And a call of everything finds a lesion, yet is not right.
        (square(0, 0, 20, 20), square(0, 0, 3, 3), counts(1, 1, 1, 0)),
    ],
)
def test_counts_by_hand(prediction, truth, expected) -> None:
    assert lesions(prediction, truth) == expected


def test_a_tenth_is_enough_and_less_is_not() -> None:
    truth = square(0, 0, 10, 3)  # 30 pixels; 3 / 30 is 0.1 exactly where 0.1 · 30 need not be 3
    assert lesions(square(0, 0, 1, 3), truth)["lesions_found"] == 1
    assert lesions(square(0, 0, 1, 2), truth)["lesions_found"] == 0
    assert lesions(square(0, 0, 5, 3), truth, overlap=0.5)["lesions_found"] == 1
    assert lesions(square(0, 0, 5, 3), truth, overlap=0.51)["lesions_found"] == 0


def test_the_overlap_is_that_with_all_calls_together() -> None:
    truth = square(0, 0, 10, 3)
    specks = square(0, 0, 1, 1) | square(4, 0, 5, 1) | square(8, 0, 9, 1)  # a thirtieth each
    assert lesions(specks, truth) == counts(1, 1, 3, 3)


def test_parts_that_touch_at_a_corner_are_one() -> None:
    assert lesions(NOTHING, square(0, 0, 2, 2) | square(2, 2, 4, 4))["lesions"] == 1
    assert lesions(NOTHING, square(0, 0, 2, 2) | square(2, 3, 4, 4))["lesions"] == 2
    assert lesions(NOTHING, np.eye(20) > 0)["lesions"] == 1


def test_detection_pools_all_lesions() -> None:
    table = pd.DataFrame([counts(3, 1, 1, 1), counts(1, 1, 4, 2), counts(0, 0, 1, 0)])
    found = detection(table)
    # 2 of 4 found, 3 of 6 right; not the mean over slices.
    assert found == {"lesion_sensitivity": 0.5, "lesion_precision": 0.5, "lesion_f1": 0.5}
    found = detection(table[:1])
    assert found["lesion_sensitivity"] == pytest.approx(1 / 3, abs=1e-5)
    assert found["lesion_f1"] == pytest.approx(2 * (1 / 3) / (4 / 3), abs=1e-5)


def test_what_has_no_denominator_is_undefined() -> None:
    nothing_called = detection(pd.DataFrame([counts(2, 0, 0, 0)]))
    assert nothing_called["lesion_sensitivity"] == 0
    assert isnan(nothing_called["lesion_precision"]) and isnan(nothing_called["lesion_f1"])
    nothing_there = detection(pd.DataFrame([counts(0, 0, 2, 0)]))
    assert nothing_there["lesion_precision"] == 0
    assert isnan(nothing_there["lesion_sensitivity"]) and isnan(nothing_there["lesion_f1"])
    assert detection(pd.DataFrame([counts(1, 0, 1, 0)]))["lesion_f1"] == 0
    assert all(isnan(value) for value in detection(pd.DataFrame([counts(0, 0, 0, 0)])).values())
