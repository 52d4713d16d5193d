"""Is one method better than another? Slice by slice on the same slices, and said in a sentence."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tumorseg.metrics import interval

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """Dice of one method minus that of another, averaged over slices.

    Attributes:
        mean: Of the differences.
        low: Lower end of the 95% interval of the mean, by bootstrapping groups of slices.
        high: Upper end.
        p_value: Of Wilcoxon's signed-rank test, zero differences included (Pratt 1959).
        slices: How many slices.
        groups: How many groups they form; they, not slices, are independent.
    """

    mean: float
    low: float
    high: float
    p_value: float
    slices: int
    groups: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero and the test agrees."""
        return (self.low > 0 or self.high < 0) and self.p_value < ALPHA

    def __str__(self) -> str:
        """Figures for a sentence."""
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        between = f"95% CI {self.low:+.3f} to {self.high:+.3f}"
        counted = f"{self.slices} slices in {self.groups} groups"
        return f"{self.mean:+.3f} mean Dice, {between}, {p}, {counted}"


def difference(
    scored: pd.DataFrame, first: str, second: str, samples: int, seed: int
) -> Difference:
    """Compares two methods on the slices that both were judged on.

    Args:
        scored: A row a method and slice, with method, path, group and dice.
        first: The method that is subtracted from.
        second: The method that is subtracted.
        samples: Bootstrap resamples.
        seed: Of the bootstrap.
    """
    dice = scored.pivot(index="path", columns="method", values="dice")
    groups = scored.drop_duplicates("path").set_index("path")["group"].loc[dice.index].to_numpy()
    gaps = (dice[first] - dice[second]).to_numpy(float)
    low, high = interval(gaps, groups, samples, seed)
    # The test is not defined where nothing differs; then there is no evidence either.
    p_value = stats.wilcoxon(gaps, zero_method="pratt").pvalue if np.any(gaps) else 1.0
    mean = float(gaps.mean())
    return Difference(mean, low, high, float(p_value), len(gaps), len(np.unique(groups)))


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
    return {
        f"{first}-{second}": {
            name: round(value, 5)
            for name, value in asdict(difference(scored, first, second, samples, seed)).items()
        }
        for first, second in pairs
    }
