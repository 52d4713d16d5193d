"""The gate's arithmetic on cases that can be computed by hand."""

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
    bootstrap_samples=200,
    seed=0,
    min_gain=0.0,
    max_loss=0.03,
    max_stratum_loss=0.05,
    min_stratum_slices=4,
)
# Tumours of 1%, 10% and 40% of the image: the three terciles, four slices each.
SIZES = [0.01] * 4 + [0.10] * 4 + [0.40] * 4
SMALL_LOSES = [0.4] * 4 + [0.7] * 4 + [0.9] * 4


def scored(dice, share=0.1) -> pd.DataFrame:
    """Slices of 100 pixels, each its own group, with given Dice."""
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


@pytest.mark.parametrize(
    ("challenger", "champion", "share", "changes", "violated"),
    [
        ([0.75] * 12, [0.7] * 12, 0.1, {}, []),
        ([0.5] * 8, [0.5] * 8, 0.1, {}, ["promote.min_gain 0"]),
        ([0.51] * 8, [0.5] * 8, 0.1, {"min_gain": 0.02}, ["promote.min_gain 0.02"]),
        ([0.53] * 8, [0.5] * 8, 0.1, {"min_gain": 0.02}, []),
        # Gains of +0.5 and -0.4, half each: +0.05 on average.
        ([0.9, 0.1] * 6, [0.4, 0.5] * 6, 0.1, {"max_stratum_loss": 1}, ["promote.max_loss 0.03"]),
        ([0.9, 0.1] * 6, [0.4, 0.5] * 6, 0.1, {"max_stratum_loss": 1, "max_loss": 0.3}, []),
        (SMALL_LOSES, [0.5] * 12, SIZES, {"max_loss": 1}, ["4 slices of small.* loses 0.1000"]),
        (SMALL_LOSES, [0.5] * 12, SIZES, {"max_loss": 1, "min_stratum_slices": 5}, []),
        (
            [0.0] * 4 + [1.0] * 8,
            [1.0] * 4 + [0.2] * 8,
            [0.0] * 4 + [0.1] * 8,
            {"max_loss": 1},
            ["no tumour it loses 1.0000"],
        ),
    ],
)
def test_violated_margins(challenger, champion, share, changes, violated) -> None:
    params = PARAMS.model_copy(update=changes)
    found = gate.figures(scored(challenger, share), scored(champion, share), params)
    against = gate.objections(found)
    assert len(against) == len(violated)
    for sentence, words in zip(against, violated, strict=True):
        assert re.search(words, sentence)


def test_figures() -> None:
    found = gate.figures(scored(SMALL_LOSES, SIZES), scored([0.5] * 12, SIZES), PARAMS)
    assert found["challenger_mean_dice"] == pytest.approx(2 / 3)
    assert found["champion_mean_dice"] == pytest.approx(0.5)
    gap = found["difference"]
    assert gap["mean"] == pytest.approx((-0.1 + 0.2 + 0.4) / 3)
    assert gap["low"] < gap["mean"] < gap["high"] and (gap["slices"], gap["groups"]) == (12, 12)
    rows = [(row["stratum"].split()[0], row["slices"]) for row in found["strata"]]
    assert rows == [("small", 4), ("medium", 4), ("large", 4)]
    assert [row["difference"] for row in found["strata"]] == pytest.approx([-0.1, 0.2, 0.4])
    first = gate.figures(scored([0.5] * 6), None, PARAMS)
    assert first["difference"] is None and first["champion_mean_dice"] is None
    assert [row["difference"] for row in first["strata"]] == [None] * len(first["strata"])


def test_slices_of_one_patient_do_not_count_as_many() -> None:
    """Two groups: the interval is as wide as their difference."""
    both = [scored(values) for values in ([0.9, 0.1] * 6, [0.4, 0.5] * 6)]
    for table in both:
        table["group"] = np.arange(12) % 2
    gap = gate.figures(*both, PARAMS)["difference"]
    assert (gap["groups"], gap["low"], gap["high"]) == pytest.approx((2, -0.4, 0.5))


def rows_of(count: int, label: str = "x") -> pd.DataFrame:
    shas = [f"{n:064x}" for n in range(count)]
    rows = pd.DataFrame({"sha256": shas, "mask_rle": label, "split_group": range(count)})
    return rows.assign(group=None)


@pytest.mark.parametrize(
    ("groups", "test_set", "stratum", "expected"),
    [
        (6, fingerprint(rows_of(6)), 4, []),
        (6, fingerprint(rows_of(6, "other")), 4, ["the champion, version 1,", "other labels"]),
        (6, fingerprint(rows_of(5)), 4, ["the champion, version 1,", "may have been trained"]),
        (6, None, 4, ["the champion, version 1,", "may have been trained"]),
        (5, fingerprint(rows_of(5)), 4, ["only 5 slices of 5 guessed groups"]),
        (6, fingerprint(rows_of(6)), 7, ["promote.min_stratum_slices 7"]),
    ],
)
def test_caveats(groups, test_set, stratum, expected) -> None:
    now = fingerprint(rows_of(groups))
    params = PARAMS.model_copy(update={"min_stratum_slices": stratum})
    found = gate.figures(scored([0.5] * groups), scored([0.4] * groups), params)
    champion = {"version": "1", "test_set": test_set}
    sentences = gate.caveats(found, {"version": "2", "test_set": now}, champion, now)
    assert len(sentences) == bool(expected)
    assert all(words in sentences[0] for words in expected)


def test_models_are_evaluated_as_served(tmp_path) -> None:
    (tmp_path / "test").mkdir()
    Image.fromarray(disc()).save(tmp_path / "test" / "a.png")
    folder = write_model(tmp_path / "model")
    mask = Predictor(folder).segment(disc()).mask
    assert mask.any()
    about = {"path": "test/a.png", "split": "test", "split_group": 7}
    about |= dict(zip(("height", "width"), mask.shape, strict=True))
    rows = pd.DataFrame([about | {"mask_rle": encode(truth)} for truth in (mask, ~mask)])
    table = gate.served_scores(folder, rows, tmp_path)
    assert table["dice"].tolist() == [1.0, 0.0] and table["group"].tolist() == [7, 7]
    assert table["tp"].tolist() == [mask.sum(), 0]
    assert table["fn"].tolist() == [0, (~mask).sum()]


def test_the_repository_s_margins_let_equals_through_on_the_published_set() -> None:
    """Gains of 0.005 with the spread that 215 slices have, as docs/operations.md promises."""
    params = load_params(PromoteParams, REPOSITORY / "params.yaml")
    gains = np.random.default_rng(0).normal(0, 0.15, 215)
    gains += 0.005 - gains.mean()
    champion = np.full(215, 0.5)
    found = gate.figures(scored(champion + gains), scored(champion), params)
    assert gate.objections(found) == []
