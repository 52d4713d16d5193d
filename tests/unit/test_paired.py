import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tumorseg.evaluation.metrics import bootstrap_means, interval
from tumorseg.evaluation.paired import difference, verdict


def scores(first, second, groups=None) -> pd.DataFrame:
    """Two methods' Dice on the same slices, in another order for each."""
    count = len(first)
    base = {"path": [f"{n}.png" for n in range(count)], "group": groups or list(range(count))}
    one = pd.DataFrame(base | {"method": "gated", "dice": first})
    two = pd.DataFrame(base | {"method": "plain", "dice": second})
    return pd.concat([one, two.sample(frac=1, random_state=0)], ignore_index=True)


def test_slices_are_paired_by_path_not_by_position() -> None:
    rng = np.random.default_rng(0)
    plain = rng.random(50)
    found = difference(scores(plain + 0.01, plain), "gated", "plain", 500, 0)
    assert found.mean == pytest.approx(0.01) and found.shown
    assert found.low == pytest.approx(0.01) and found.high == pytest.approx(0.01)
    assert (found.slices, found.groups) == (50, 50)


def test_a_patient_s_slices_count_as_one() -> None:
    # 20 patients of 10 equal slices: as much evidence as 20 slices, not as 200.
    patients = np.random.default_rng(2).normal(0.5, 0.2, 20)
    values, groups = np.repeat(patients, 10), np.repeat(np.arange(20), 10)
    alone = np.subtract(*interval(patients, np.arange(20), 4000, 0)[::-1])
    clustered = np.subtract(*interval(values, groups, 4000, 0)[::-1])
    naive = np.subtract(*interval(values, np.arange(200), 4000, 0)[::-1])
    assert clustered == pytest.approx(alone, rel=1e-9)
    assert naive < 0.5 * clustered


def test_coverage_is_about_what_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        patients = rng.normal(0, 1, 40)
        values = np.repeat(patients, 5) + rng.normal(0, 0.3, 200)
        low, high = interval(values, np.repeat(np.arange(40), 5), 400, 0)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.985


def test_the_verdict_claims_no_more_than_was_shown() -> None:
    rng = np.random.default_rng(4)
    plain = rng.random(60)
    alike = difference(scores(plain + rng.normal(0, 0.1, 60), plain), "gated", "plain", 500, 0)
    assert verdict(alike, "A", "B", True).startswith("No difference shown between A and B (")
    better = difference(scores(plain + 0.1, plain), "gated", "plain", 500, 0)
    assert verdict(better, "A", "B", True).startswith("A scores higher than B (A minus B: +0.100")
    worse = difference(scores(plain - 0.1, plain), "gated", "plain", 500, 0)
    assert verdict(worse, "A", "B", True).startswith("B scores higher than A (A minus B: -0.100")
    assert "p < 0.001, 60 slices of 60 patients, one" in verdict(worse, "A", "B", True)
    assert "p < 0.001, 60 slices of 60 guessed groups, one" in verdict(worse, "A", "B", False)
    same = difference(scores([0.5, 1.0, 0.0], [0.5, 1.0, 0.0]), "gated", "plain", 100, 0)
    assert (same.mean, same.low, same.high, same.p_value, same.shown) == (0, 0, 0, 1, False)


def test_a_single_bad_patient_is_no_evidence() -> None:
    # One patient with many slices would make a test of slices sure; groups are tested.
    groups = [0] * 60 + list(range(1, 11))
    gaps = np.array([0.3] * 60 + [-0.1, 0.1] * 5)
    found = difference(scores(0.5 + gaps, np.full(70, 0.5), groups), "gated", "plain", 2000, 0)
    assert stats.wilcoxon(gaps).pvalue < 0.001
    assert found.p_value > 0.3 and not found.shown


def test_few_large_gains_against_many_small_losses_are_no_evidence() -> None:
    # The mean is above zero and its interval too, but most slices are worse: ranks point down.
    gaps = np.array([-0.01] * 85 + [0.45] * 15)
    found = difference(scores(0.5 + gaps, np.full(100, 0.5)), "gated", "plain", 2000, 0)
    assert found.low > 0 and not found.shown
    one_sided = stats.wilcoxon(gaps, zero_method="pratt", alternative="greater").pvalue
    assert found.p_value == min(1, 2 * one_sided) and stats.wilcoxon(gaps).pvalue < 0.05


def test_a_handful_of_patients_is_too_few() -> None:
    plain = np.random.default_rng(6).random(60)
    for patients, enough in ((1, False), (5, False), (6, True)):
        groups = [n % patients for n in range(60)]
        found = difference(scores(plain + 0.1, plain, groups), "gated", "plain", 200, 0)
        assert found.shown == enough
        assert ("too few to tell" in found.words(True)) != enough


def test_resampled_seeds_vary_as_much_as_seeds_do() -> None:
    by_seed = np.array([0.1, 0.2, 0.3])
    means = bootstrap_means(np.tile(by_seed, (5, 1)), np.arange(5), 20000, 0)
    assert means.std() == pytest.approx(by_seed.std(ddof=1) / 3**0.5, rel=0.03)


def test_seeds_are_paired_with_each_other_and_with_a_baseline() -> None:
    rng = np.random.default_rng(5)
    plain = rng.random((2, 40))
    repeated = [scores(plain[s] + 0.1 * (s + 1), plain[s]).assign(seed=s) for s in (0, 1)]
    baseline = pd.DataFrame({"path": [f"{n}.png" for n in range(40)], "method": "copy"})
    baseline = baseline.assign(dice=0.5, group=range(40))
    table = pd.concat([*repeated, baseline], ignore_index=True)
    found = difference(table, "gated", "plain", 500, 0)
    assert found.by_seed == pytest.approx({"0": 0.1, "1": 0.2})
    assert (found.mean, found.slices) == (pytest.approx(0.15), 40)
    # Two seeds vary by twice what resampling two of them does.
    assert found.low == pytest.approx(0.15 - 0.05 * 2**0.5)
    assert found.high == pytest.approx(0.15 + 0.05 * 2**0.5)
    assert found.p_seeds == pytest.approx(stats.ttest_1samp([0.1, 0.2], 0).pvalue)
    assert not found.shown
    against = difference(table, "plain", "copy", 500, 0)
    assert against.by_seed == pytest.approx(
        {"0": plain[0].mean() - 0.5, "1": plain[1].mean() - 0.5}
    )
    assert difference(table, "copy", "plain", 500, 0).mean == pytest.approx(-against.mean)
