"""Is one method better than another? Slice by slice on the same slices, and said in a sentence."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tumorseg.evaluation.metrics import by_repetition, interval

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """Dice of one method minus that of another, averaged over slices.

    Attributes:
        mean: Of the differences.
        low: Lower end of the 95% interval of the mean, by bootstrapping groups of slices and seeds.
        high: Upper end.
        p_value: Of Wilcoxon's signed-rank test, zero differences included (Pratt 1959).
        slices: How many slices.
        groups: How many groups they form; they, not slices, are independent.
        by_seed: Seed → the mean of the differences after training with it.
    """

    mean: float
    low: float
    high: float
    p_value: float
    slices: int
    groups: int
    by_seed: dict[str, float]

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero and the test agrees."""
        return (self.low > 0 or self.high < 0) and self.p_value < ALPHA

    def __str__(self) -> str:
        """Figures for a sentence."""
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        between = f"95% CI {self.low:+.3f} to {self.high:+.3f}"
        counted = f"{self.slices} slices in {self.groups} groups, "
        counted += "one seed" if len(self.by_seed) == 1 else f"{len(self.by_seed)} seeds"
        return f"{self.mean:+.3f} mean Dice, {between}, {p}, {counted}"


def difference(
    scored: pd.DataFrame, first: str, second: str, samples: int, seed: int
) -> Difference:
    """Compares two methods on the slices that both were judged on.

    Two networks are compared seed by seed, since the same seed gave both the same first weights and
    the same slices in the same order; a control is compared with every seed of a network.

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
    groups = scored.drop_duplicates("path").set_index("path")["group"].loc[one.index].to_numpy()
    low, high = interval(gaps, groups, samples, seed)
    by_slice = gaps.mean(axis=1)
    # The test is not defined where nothing differs; then there is no evidence either.
    p_value = stats.wilcoxon(by_slice, zero_method="pratt").pvalue if np.any(by_slice) else 1.0
    return Difference(
        float(gaps.mean()),
        low,
        high,
        float(p_value),
        len(gaps),
        len(np.unique(groups)),
        dict(zip(seeds, gaps.mean(axis=0).tolist(), strict=True)),
    )


def verdict(found: Difference, first: str, second: str) -> str:
    """The comparison in a sentence that claims no more than was shown."""
    if not found.shown:
        return f"No difference shown between {first} and {second} ({found})."
    higher, lower = (first, second) if found.mean > 0 else (second, first)
    return f"{higher} scores higher than {lower} ({first} minus {second}: {found})."


def comparisons(
    scored: pd.DataFrame, pairs: list[tuple[str, str]], samples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """`difference` for several pairs, as plain values: `first-second` → figure → value."""
    found = {f"{a}-{b}": asdict(difference(scored, a, b, samples, seed)) for a, b in pairs}
    return {pair: {name: _rounded(v) for name, v in one.items()} for pair, one in found.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: round(number, 5) for key, number in value.items()}
    return round(value, 5)
