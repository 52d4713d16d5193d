"""Paired comparison of two methods on the same slices: difference, interval, tests, sentence."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tumorseg.evaluation.metrics import Floats, by_repetition, counted, groups_of, interval

ALPHA = 0.05
FEWEST_GROUPS = 6  # of fewer, all on one side, the test has p > 0.05: 2 / 2⁵


@dataclass(frozen=True)
class Difference:
    """Dice of one method minus that of another, averaged over slices.

    Attributes:
        mean: Of the differences.
        low: Lower end of the 95% interval of the mean, by bootstrapping groups of slices and seeds.
        high: Upper end.
        p_value: Of Wilcoxon's signed-rank test of the groups' mean differences, zeros included
            (Pratt 1959): twice the one-sided p in the direction of `mean`.
        p_seeds: Of Student's t-test of the seeds' mean differences; None with one seed.
        slices: How many slices.
        groups: How many groups they form; they, not slices, are independent.
        by_seed: Seed → the mean of the differences after training with it.
    """

    mean: float
    low: float
    high: float
    p_value: float
    p_seeds: float | None
    slices: int
    groups: int
    by_seed: dict[str, float]

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero and both tests are significant, on enough groups."""
        seeds_agree = self.p_seeds is None or self.p_seeds < ALPHA
        tested = self.groups >= FEWEST_GROUPS and self.p_value < ALPHA
        return (self.low > 0 or self.high < 0) and tested and seeds_agree

    def words(self, patients_known: bool) -> str:
        """Figures for a sentence."""
        between = f"95% CI {self.low:+.3f} to {self.high:+.3f}"
        rests_on = counted(self.slices, self.groups, patients_known)
        if self.groups < FEWEST_GROUPS:
            rests_on += ", too few to tell"
        seeds = "one seed" if self.p_seeds is None else f"{len(self.by_seed)} seeds"
        if self.p_seeds is not None:
            seeds += f" ({p_words(self.p_seeds)} over them)"
        tested = f"{p_words(self.p_value)}, {rests_on}, {seeds}"
        return f"{self.mean:+.3f} mean Dice, {between}, {tested}"


def difference(
    scored: pd.DataFrame, first: str, second: str, samples: int, seed: int
) -> Difference:
    """Compares two methods on the slices that both were evaluated on.

    Two networks are compared seed by seed, since a seed gives both the same initial weights and
    order of slices; a baseline is compared with every seed of a network.

    Args:
        scored: A row a method, seed and slice, with method, seed, path, group and dice.
        first: The method that is subtracted from.
        second: The method that is subtracted.
        samples: Bootstrap resamples.
        seed: Of the bootstrap.
    """
    one, other = (by_repetition(scored[scored["method"] == m], "dice") for m in (first, second))
    other = other.loc[one.index]
    seeds = [str(s) for s in max((one, other), key=lambda t: t.shape[1]).columns]
    if one.shape[1] > 1 and other.shape[1] > 1:
        other = other[one.columns]
    gaps = one.to_numpy(float) - other.to_numpy(float)  # slices, seeds
    groups = groups_of(scored, one)
    low, high = interval(gaps, groups, samples, seed)
    by_group = pd.Series(gaps.mean(axis=1)).groupby(groups).mean().to_numpy(float)
    by_seed = gaps.mean(axis=0)
    return Difference(
        float(gaps.mean()),
        low,
        high,
        _signed_rank(by_group, float(gaps.mean())),
        _over_seeds(by_seed) if len(by_seed) > 1 else None,
        len(gaps),
        len(by_group),
        dict(zip(seeds, by_seed.tolist(), strict=True)),
    )


def _signed_rank(by_group: Floats, mean: float) -> float:
    # The test is not defined where nothing differs; then there is no evidence either.
    if not np.any(by_group):
        return 1.0
    # Where few groups differ much, ranks can point away from the mean: test in its direction.
    side = "greater" if mean > 0 else "less"
    found = stats.wilcoxon(by_group, zero_method="pratt", alternative=side)
    return min(1.0, 2 * float(found.pvalue))


def _over_seeds(by_seed: Floats) -> float:
    if np.ptp(by_seed) == 0:  # no spread to test against: seeds that made no difference
        return 0.0 if by_seed[0] else 1.0
    return float(stats.ttest_1samp(by_seed, 0).pvalue)


def p_words(value: float) -> str:
    """A p-value for a sentence."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def verdict(found: Difference, first: str, second: str, patients_known: bool) -> str:
    """The comparison in a sentence; only a `shown` difference is called one."""
    words = found.words(patients_known)
    if not found.shown:
        return f"No difference shown between {first} and {second} ({words})."
    higher, lower = (first, second) if found.mean > 0 else (second, first)
    return f"{higher} scores higher than {lower} ({first} minus {second}: {words})."


def comparisons(
    scored: pd.DataFrame, pairs: list[tuple[str, str]], samples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """`difference` for several pairs, as plain values: `first-second` → figure → value."""
    found = {f"{a}-{b}": asdict(difference(scored, a, b, samples, seed)) for a, b in pairs}
    rounded: dict[str, dict[str, Any]] = json.loads(
        json.dumps(found), parse_float=lambda text: round(float(text), 5)
    )
    return rounded
