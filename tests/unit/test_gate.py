"""The gate's arithmetic on cases that can be reckoned by hand."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.support.serving_model import disc, write_model
from tumorseg.core.params import PromoteParams, load_params
from tumorseg.data.coco import encode
from tumorseg.data.splits import fingerprint
from tumorseg.inference.predictor import Predictor
from tumorseg.registry import gate

PARAMS = PromoteParams(
    bootstrap_samples=500,
    seed=0,
    min_gain=0.0,
    max_loss=0.03,
    max_stratum_loss=0.05,
    min_stratum_slices=4,
)


def scored(dice, share=0.1) -> pd.DataFrame:
    """Slices of 100 pixels, each its own group, whose Dice is given and not computed."""
    count = len(dice)
    tumour = np.broadcast_to(np.rint(np.asarray(share) * 100).astype(int), count)
    return pd.DataFrame(
        {
            "path": [f"test/{n}.png" for n in range(count)],
            "group": range(count),
            "tp": 0,
            "fp": 0,
            "fn": tumour,
            "tn": 100 - tumour,
            "dice": np.asarray(dice, float),
        }
    )


def compare(challenger, champion, share=0.1, **changes) -> tuple[dict, list[str]]:
    params = PARAMS.model_copy(update=changes)
    found = gate.figures(scored(challenger, share), scored(champion, share), params)
    return found, gate.objections(found)


def test_equal_gains_everywhere_have_an_interval_of_no_width() -> None:
    found, against = compare([0.75] * 12, [0.7] * 12)
    gap = found["difference"]
    assert (gap["mean"], gap["low"], gap["high"]) == pytest.approx((0.05, 0.05, 0.05))
    assert (gap["slices"], gap["groups"]) == (12, 12)
    assert found["challenger_mean_dice"] == pytest.approx(0.75)
    assert found["champion_mean_dice"] == pytest.approx(0.7)
    assert against == []


@pytest.mark.parametrize(
    ("gain", "min_gain", "passes"),
    [(0.0, 0.0, False), (0.001, 0.0, True), (0.01, 0.02, False), (0.03, 0.02, True)],
)
def test_the_mean_gain_must_exceed_min_gain(gain, min_gain, passes) -> None:
    _, against = compare([0.5 + gain] * 8, [0.5] * 8, min_gain=min_gain)
    assert (against == []) is passes
    if not passes:
        assert len(against) == 1 and f"promote.min_gain {min_gain:g}" in against[0]


def test_a_gain_whose_interval_reaches_too_low_is_not_enough() -> None:
    # Gains of +0.5 and −0.4, half each: +0.05 on average, with a standard error of 0.45 / √12.
    challenger, champion = [0.9, 0.1] * 6, [0.4, 0.5] * 6
    found, against = compare(challenger, champion, max_stratum_loss=1.0)
    gap = found["difference"]
    assert gap["mean"] == pytest.approx(0.05)
    assert gap["low"] == pytest.approx(0.05 - 1.96 * 0.45 / 12**0.5, abs=0.05)
    (sentence,) = against
    assert "promote.max_loss 0.03" in sentence and f"{gap['low']:+.4f}" in sentence
    assert compare(challenger, champion, max_loss=0.3, max_stratum_loss=1.0)[1] == []


def test_slices_of_one_patient_do_not_stand_for_many() -> None:
    """The same gains as above, now from two groups: the interval is as wide as their difference."""
    both = [scored(values) for values in ([0.9, 0.1] * 6, [0.4, 0.5] * 6)]
    for table in both:
        table["group"] = np.arange(12) % 2
    found = gate.figures(*both, PARAMS)
    assert found["difference"]["groups"] == 2
    assert (found["difference"]["low"], found["difference"]["high"]) == pytest.approx((-0.4, 0.5))


# Tumours of 1%, 10% and 40% of the image: the three terciles, four slices each.
SIZES = [0.01] * 4 + [0.10] * 4 + [0.40] * 4


def test_a_loss_on_one_size_of_tumour_is_refused_though_the_mean_gains() -> None:
    champion = [0.5] * 12
    challenger = [0.4] * 4 + [0.7] * 4 + [0.9] * 4
    found, against = compare(challenger, champion, SIZES)
    rows = {row["stratum"].split()[0]: row for row in found["strata"]}
    assert set(rows) == {"small", "medium", "large"}
    assert [rows[name]["slices"] for name in rows] == [4, 4, 4]
    assert rows["small"]["difference"] == pytest.approx(-0.1)
    assert rows["large"]["difference"] == pytest.approx(+0.4)
    assert found["difference"]["mean"] == pytest.approx((-0.1 + 0.2 + 0.4) / 3)
    (sentence,) = [one for one in against if "max_stratum_loss" in one]
    assert "4 slices of small" in sentence and "loses 0.1000" in sentence


def test_a_small_stratum_does_not_count() -> None:
    champion, challenger = [0.5] * 12, [0.4] * 4 + [0.7] * 4 + [0.9] * 4
    found, against = compare(challenger, champion, SIZES, min_stratum_slices=5)
    assert not any(row["counts"] for row in found["strata"])
    assert not [one for one in against if "max_stratum_loss" in one]
    now = fingerprint(rows_of(6))
    model = {"version": "1", "test_set": now}
    (sentence,) = gate.caveats(found, model, model, now)
    assert "min_stratum_slices" in sentence


def test_slices_without_tumour_are_a_stratum_too() -> None:
    shares = [0.0] * 4 + [0.1] * 8
    _, against = compare([0.0] * 4 + [1.0] * 8, [1.0] * 4 + [0.2] * 8, shares, max_loss=1)
    (sentence,) = against
    assert "no tumour" in sentence and "loses 1.0000" in sentence


def test_without_a_champion_there_is_nothing_to_compare() -> None:
    found = gate.figures(scored([0.5] * 6), None, PARAMS)
    assert found["difference"] is None and found["champion_mean_dice"] is None
    assert [row["difference"] for row in found["strata"]] == [None] * len(found["strata"])


def rows_of(count: int, label: str = "x") -> pd.DataFrame:
    shas = [f"{n:064x}" for n in range(count)]
    return pd.DataFrame({"sha256": shas, "mask_rle": label, "split_group": range(count)})


@pytest.mark.parametrize(
    ("test_set", "caveat"),
    [
        (fingerprint(rows_of(6)), None),
        (fingerprint(rows_of(6, "other")), "other labels of the same test slices"),
        (fingerprint(rows_of(5)), "had 5 slices.*may have been trained on"),
        (None, "test set is not known.*may have been trained on"),
    ],
)
def test_a_champion_that_may_have_seen_the_test_slices_is_a_caveat(test_set, caveat) -> None:
    now = fingerprint(rows_of(6))
    found = gate.figures(scored([0.5] * 6), scored([0.4] * 6), PARAMS)
    champion = {"version": "1", "test_set": test_set}
    sentences = gate.caveats(found, {"version": "2", "test_set": now}, champion, now)
    assert len(sentences) == (caveat is not None)
    for sentence in sentences:
        assert re.match(f"the champion, version 1,.*{caveat}", sentence)


def test_too_few_groups_are_a_caveat() -> None:
    now = fingerprint(rows_of(5))
    found = gate.figures(scored([0.5] * 5), None, PARAMS)
    challenger = {"version": "1", "test_set": now}
    assert gate.caveats(found, challenger, None, now) == [
        "the test slices form only 5 groups: the interval says little"
    ]


def test_models_are_judged_as_served(tmp_path) -> None:
    (tmp_path / "test").mkdir()
    Image.fromarray(disc()).save(tmp_path / "test" / "a.png")
    folder = write_model(tmp_path / "model")
    mask = Predictor(folder).segment(disc()).mask
    assert mask.any()
    rows = pd.DataFrame(
        [
            {"path": "test/a.png", "split": "test", "mask_rle": encode(truth), "split_group": 7}
            | dict(zip(("height", "width"), mask.shape, strict=True))
            for truth in (mask, ~mask)
        ]
    )
    table = gate.served_scores(folder, rows, tmp_path)
    assert table["dice"].tolist() == [1.0, 0.0] and table["group"].tolist() == [7, 7]
    assert table["tp"].tolist() == [mask.sum(), 0]
    assert table["fn"].tolist() == [0, (~mask).sum()]


def test_the_margins_of_the_repository_let_equals_through_on_the_published_set() -> None:
    """Gains of 0.005 with the spread that 215 slices have, as docs/operations.md says of them."""
    params = load_params(PromoteParams, REPOSITORY / "params.yaml")
    gains = np.random.default_rng(0).normal(0, 0.15, 215)
    gains += 0.005 - gains.mean()
    champion = np.full(215, 0.5)
    found = gate.figures(scored(champion + gains), scored(champion), params)
    assert gate.objections(found) == []
