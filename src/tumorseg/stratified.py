"""Is one network better on small tumours, or on one category? The paired difference by stratum."""

import pandas as pd

from tumorseg.paired import difference

FEWEST = 10  # slices; the interval of fewer says nothing
SIZES = ("small", "medium", "large")


def size_of(tumour: pd.Series) -> pd.Series:
    """The third of tumour size that each slice is in.

    Args:
        tumour: True pixels, or their share of the image, of each slice.

    Returns:
        "none", "small", "medium" or "large", with the same index; the thirds are of the slices
        that hold tumour.
    """
    sizes = pd.Series("none", index=tumour.index)
    some = tumour > 0
    if some.any():
        ranks = tumour[some].rank(pct=True)
        sizes[some] = pd.cut(ranks, [0, 1 / 3, 2 / 3, 1], labels=list(SIZES)).astype(str)
    return sizes


def strata_of(tumour: pd.DataFrame) -> dict[tuple[str, str], pd.Index]:
    """Which slices are in which stratum.

    Args:
        tumour: Indexed by path, with tumour_fraction and category (several comma-separated).

    Returns:
        ("size" or "category", stratum) → paths; a slice of two categories is in both.
    """
    sizes = size_of(tumour["tumour_fraction"])
    found = {("size", name): sizes.index[sizes == name] for name in (*SIZES, "none")}
    named = tumour["category"].str.split(",").explode()
    for name in sorted(set(named) - {""}):
        found["category", name] = named.index[named == name]
    return {key: paths for key, paths in found.items() if len(paths)}


def stratified_differences(
    scored: pd.DataFrame,
    strata: dict[tuple[str, str], pd.Index],
    first: str,
    second: str,
    bootstrap: tuple[int, int],
) -> tuple[pd.DataFrame, list[str]]:
    """The difference in Dice of two methods in each stratum.

    Args:
        scored: From `tumorseg.report_inputs.over_seeds`.
        strata: From `strata_of`.
        first: The method that is subtracted from.
        second: The method that is subtracted.
        bootstrap: Samples and seed.

    Returns:
        A row a stratum (by, stratum, mean, low, high, slices, groups), and the strata with fewer
        than `FEWEST` slices, which have none, in words.
    """
    rows, skipped = [], []
    for (by, name), paths in strata.items():
        chosen = scored[scored["path"].isin(paths)]
        if len(paths) < FEWEST:
            skipped.append(f"{by} {name} ({len(paths)})")
            continue
        found = difference(chosen, first, second, *bootstrap)
        rows.append(
            {"by": by, "stratum": name, "mean": found.mean, "low": found.low}
            | {"high": found.high, "slices": found.slices, "groups": found.groups}
        )
    return pd.DataFrame(rows), skipped
