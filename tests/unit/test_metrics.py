import numpy as np
import pandas as pd
import pytest

from tests.support.masks import NOTHING, square
from tumorseg.data.audit import copied_masks
from tumorseg.data.coco import encode
from tumorseg.data.leakage import thumbnail
from tumorseg.evaluation import baselines
from tumorseg.evaluation.metrics import count, counted, dice, interval, iou, score, summarise


@pytest.mark.parametrize(
    ("prediction", "truth", "expected_dice", "expected_iou"),
    [
        (square(0, 0, 10, 10), square(0, 0, 10, 10), 1, 1),
        (square(0, 0, 10, 10), square(5, 0, 15, 10), 0.5, 1 / 3),
        (NOTHING, NOTHING, 1, 1),  # both empty: nothing to find, none found
        (NOTHING, square(0, 0, 5, 5), 0, 0),
        (square(0, 0, 5, 5), NOTHING, 0, 0),
    ],
)
def test_dice_and_iou(prediction, truth, expected_dice, expected_iou) -> None:
    counts = count(prediction, truth)
    assert sum(counts.values()) == 400
    wrong = counts["fp"] + counts["fn"]
    assert dice(counts["tp"], wrong) == pytest.approx(expected_dice)
    assert iou(counts["tp"], wrong) == pytest.approx(expected_iou)


@pytest.fixture
def scored() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    masks = [(rng.random((16, 16)) > 0.7, rng.random((16, 16)) > 0.7) for _ in range(40)]
    masks += [(np.zeros((16, 16), bool),) * 2]
    return score(pd.DataFrame([count(*pair) for pair in masks]))


def test_summary(scored: pd.DataFrame) -> None:
    found = summarise(scored, samples=500, seed=0)
    assert found["slices"] == 41
    # micro Dice = 2·IoU / (1 + IoU) holds for pooled counts, and not for means.
    assert found["micro_dice"] == pytest.approx(
        2 * found["micro_iou"] / (1 + found["micro_iou"]), abs=2e-5
    )
    tp, fp, fn, tn = (scored[k].sum() for k in ("tp", "fp", "fn", "tn"))
    assert found["micro_dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-5)
    assert found["accuracy"] == pytest.approx((tp + tn) / (16 * 16 * 41), abs=1e-5)
    assert found["mean_dice_low"] < found["mean_dice"] < found["mean_dice_high"]
    standard_error = scored["dice"].std() / np.sqrt(41)
    width = found["mean_dice_high"] - found["mean_dice_low"]
    assert width == pytest.approx(2 * 1.96 * standard_error, rel=0.2)
    assert found == summarise(scored, samples=500, seed=0)


def test_micro_dice_has_the_interval_of_pooled_groups(scored: pd.DataFrame) -> None:
    scored = scored.assign(path=scored.index, group=scored.index // 4)
    found = summarise(scored, samples=4000, seed=0)
    rng = np.random.default_rng(1)
    groups = [part for _, part in scored.groupby("group")]
    pooled = []
    for _ in range(1500):
        drawn = pd.concat([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        tp, wrong = drawn["tp"].sum(), drawn["fp"].sum() + drawn["fn"].sum()
        pooled.append(2 * tp / (2 * tp + wrong))
    low, high = np.percentile(pooled, [2.5, 97.5])
    width = high - low
    assert found["micro_dice_low"] == pytest.approx(low, abs=width / 10)
    assert found["micro_dice_high"] == pytest.approx(high, abs=width / 10)
    empty = score(pd.DataFrame([{"tp": 0, "fp": 0, "fn": 0, "tn": 9}] * 3))
    found = summarise(empty, samples=10, seed=0)
    assert found["micro_dice_low"] == found["micro_dice"] == found["micro_dice_high"] == 1


def test_every_patient_weighs_the_same_in_the_mean_by_patient() -> None:
    # Twelve patients with 1, 2 … 12 slices, the more of them the lower their Dice.
    groups = np.repeat(np.arange(12), np.arange(1, 13))
    tp = 24 - 2 * groups
    table = pd.DataFrame({"group": groups, "tp": tp, "fp": 24 - tp, "fn": 24 - tp, "tn": 0})
    found = summarise(score(table), samples=500, seed=0)
    each = 1 - np.arange(12) / 12
    assert (found["slices"], found["groups"]) == (78, 12)
    assert found["mean_dice_by_patient"] == pytest.approx(each.mean(), abs=1e-5)
    assert found["mean_dice"] == pytest.approx(each[groups].mean(), abs=1e-5)
    ends = [found["mean_dice_by_patient_low"], found["mean_dice_by_patient_high"]]
    assert ends == pytest.approx(interval(each, np.arange(12), 500, 0), abs=1e-5)
    seeds = pd.concat([score(table).assign(path=table.index, seed=seed) for seed in (0, 1)])
    assert summarise(seeds, 500, 0)["mean_dice_by_patient"] == found["mean_dice_by_patient"]


@pytest.mark.parametrize(
    ("counts", "rate", "zero"),
    [
        # One pixel that overlaps is enough; a false alarm without a tumour is not asked about.
        ([(1, 9), (5, 0), (0, 3), (0, 7), (0, 0)], 0.5, 0.5),
        ([(0, 0), (0, 0)], None, None),
    ],
)
def test_a_tumour_is_found_where_the_prediction_overlaps_it(counts, rate, zero) -> None:
    table = pd.DataFrame(counts, columns=["tp", "fn"]).assign(fp=4, tn=30)
    found = summarise(score(table), samples=10, seed=0)
    assert (found["detection_rate"], found["share_dice_zero"]) == (rate, zero)


def test_groups_are_called_patients_only_where_these_are_known() -> None:
    assert counted(1215, 95, True) == "1,215 slices of 95 patients"
    assert counted(215, 51, False) == "215 slices of 51 guessed groups"
    assert counted(1, 1, True) == "1 slice of 1 patient"


def rows_of(masks: list[np.ndarray], first: int = 0) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"mask_rle": encode(m), "height": m.shape[0], "width": m.shape[1], "thumbnail": n}
            for n, m in enumerate(masks, first)
        ]
    )


def test_copy_takes_the_most_similar_train_slice() -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 255, (6, 64, 64)).astype(np.uint8)
    masks = [square(i, i, i + 5, i + 5) for i in range(6)]
    test = np.clip(train[[4, 1]].astype(int) // 2 + 30, 0, 255).astype(np.uint8)  # another gain
    small = np.stack([thumbnail(image) for image in (*train, *test)])
    copied = list(copied_masks(small, rows_of(masks), rows_of(masks[:2], first=6)))
    assert np.array_equal(copied[0], masks[4]) and np.array_equal(copied[1], masks[1])


def test_a_copied_mask_keeps_its_shape_on_a_picture_of_another_shape() -> None:
    # Similarity is that of padded squares, so a circle must stay one, in the same place.
    mask = np.zeros((60, 100), bool)
    mask[25:35, 45:55] = True
    upright, double, same = baselines.copy([mask] * 3, [(100, 60), (200, 200), (60, 100)])
    assert np.array_equal(upright, square(45, 25, 55, 35, side=100)[:, :60])
    assert np.array_equal(double, square(90, 90, 110, 110, side=200))
    assert same is mask


def test_intensity_band_is_the_best_of_all_and_background_is_empty() -> None:
    rng = np.random.default_rng(0)
    masks = (rng.random((4, 32, 32)) > 0.8).astype(np.uint8)
    # Tumour between two kinds of healthy tissue: a single threshold would not do.
    healthy = np.where(rng.random(masks.shape) > 0.5, 40, 220)
    images = np.where(masks, 120, healthy).astype(np.uint8)
    low, high = baselines.best_band(images, masks)
    assert 40 < low <= 120 <= high < 220
    found = baselines.intensity(images, masks, images, [(32, 32)] * 4)
    assert np.array_equal(list(found), masks > 0)
    (mask,) = baselines.background([(20, 30)])
    assert mask.shape == (20, 30) and not mask.any()


def test_what_is_not_defined_is_none() -> None:
    empty, full = NOTHING, square(0, 0, 5, 5)
    missed = summarise(score(pd.DataFrame([count(empty, full)])), samples=10, seed=0)
    assert (missed["micro_sensitivity"], missed["micro_precision"]) == (0, None)
    healthy = summarise(score(pd.DataFrame([count(full, empty)])), samples=10, seed=0)
    assert (healthy["micro_sensitivity"], healthy["micro_precision"]) == (None, 0)


def test_seeds_are_averaged_and_drawn() -> None:
    rng = np.random.default_rng(0)
    slices = pd.DataFrame({"path": range(30), "tp": 50, "tn": 300})
    wrong = rng.integers(0, 60, 30)
    alike, unlike = (
        pd.concat([slices.assign(seed=s, fp=wrong + gap * s, fn=0) for s in range(3)])
        for gap in (0, 40)
    )
    one = summarise(score(alike[alike["seed"] == 0]), samples=800, seed=0)
    three = summarise(score(alike), samples=800, seed=0)
    assert (one["seeds"], three["seeds"], three["slices"]) == (1, 3, 30)
    assert three["mean_dice"] == one["mean_dice"]
    assert three["mean_dice_low"] == pytest.approx(one["mean_dice_low"], abs=0.01)
    spread = summarise(score(unlike), samples=800, seed=0)
    assert spread["mean_dice"] == pytest.approx(score(unlike)["dice"].mean(), abs=1e-5)
    width = spread["mean_dice_high"] - spread["mean_dice_low"]
    assert width > 2 * (three["mean_dice_high"] - three["mean_dice_low"])
