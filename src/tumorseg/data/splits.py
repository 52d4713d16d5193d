"""Which slices belong together, and to which split each group goes."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tumorseg.core.errors import InputError
from tumorseg.data.leakage import neighbours_elsewhere

FRACTIONS = {"train": 0.7, "valid": 0.2, "test": 0.1}
EXCLUDED = "excluded"  # of a slice that is in no split, since it lies between two of them
NO_PATIENTS = "The data do not name patients, so no split of them can be called patient-wise."


def assign_splits(
    groups: Sequence[str],
    strata: Sequence[str],
    fractions: dict[str, float] = FRACTIONS,
    seed: int = 0,
) -> list[str]:
    """Puts every group into one split, so that each gets its share of every stratum.

    Largest group first, each goes where it leaves the counts nearest to the shares asked for: the
    greedy rule of scikit-learn's StratifiedGroupKFold, for splits of unequal size.

    Args:
        groups: The group of each slice, length N.
        strata: What shall be spread evenly, such as category and tumour size, length N.
        fractions: Split → share of the slices, summing to 1.
        seed: Decides between groups of equal size.

    Returns:
        The split of each slice, length N. None is empty if there are as many groups as splits.
    """
    counts = pd.crosstab(np.asarray(groups, str), np.asarray(strata, str))
    sizes = counts.sum(axis=1)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    order = shuffled[np.argsort(-sizes.to_numpy()[shuffled], kind="stable")]
    share = np.array(list(fractions.values()))[:, None]  # splits × 1
    # The last column, all slices, keeps the sizes right where strata are many and small.
    each = np.column_stack([counts.to_numpy(), sizes]) / np.append(counts.sum(), sizes.sum())
    filled = np.zeros((len(share), each.shape[1]))  # splits × strata, as shares
    chosen = np.empty(len(counts), int)
    for group in order:
        costs = [
            np.square(
                filled + each[group] * (np.arange(len(share)) == split)[:, None] - share
            ).sum()
            for split in range(len(share))
        ]
        chosen[group] = int(np.argmin(costs))
        filled[chosen[group]] += each[group]
    for split in range(len(share)):
        fullest = int(np.argmax(np.bincount(chosen, minlength=len(share))))
        if split not in chosen and np.count_nonzero(chosen == fullest) > 1:
            movable = [group for group in order if chosen[group] == fullest]
            chosen[movable[-1]] = split  # the smallest
    names = list(fractions)
    split_of = {group: names[split] for group, split in zip(counts.index, chosen, strict=True)}
    return [split_of[str(group)] for group in groups]


def find_groups(
    table: pd.DataFrame, pairs: pd.DataFrame, shortest: int, longest: int
) -> NDArray[np.intp]:
    """Numbers the groups of slices that must stay together.

    Slices of one patient or series are one group, where the data say which those are. Elsewhere
    groups are guessed: slices with consecutive numbers form chains; a chain can run through the
    whole data set, so one of more than `longest` slices is cut where neighbours look least alike,
    which is mostly between patients, though where a set was stored plane by plane each patient is
    in several chains. Whatever equal slices connect is one group in the end, and what nearly equal
    ones do, unless both have a given group: the data know better.

    Args:
        table: The manifest, without problems.
        pairs: From `tumorseg.data.leakage.find_pairs`.
        shortest: No cut leaves fewer slices than this.
        longest: A chain or what is left of it is cut while it has more.

    Returns:
        Shape (N,), from 0, in the order in which groups first appear.
    """
    place = pd.Series(np.arange(len(table)), index=table["path"])
    known = pairs[pairs["left"].isin(place.index) & pairs["right"].isin(place.index)]
    given = table["path"][table["group"].notna()]
    told_apart = known["left"].isin(given) & known["right"].isin(given)
    links = known[(known["kind"] == "exact") | ((known["kind"] == "near") & ~told_apart)]
    edges = [place[links["left"]].to_numpy(), place[links["right"]].to_numpy()]

    # Each named group is a further node, after those of the slices.
    members, names = pd.factorize(table["group"])
    named = members >= 0
    edges[0] = np.append(edges[0], np.flatnonzero(named))
    edges[1] = np.append(edges[1], len(table) + members[named])

    # find_pairs sorted these by number: a chain is a run of rows, each starting where one ended.
    rows = known[known["kind"] == "neighbour"]
    rows = rows[~named[place[rows["left"]].to_numpy(np.intp)]]
    starts = (rows["left"] != rows["right"].shift()).cumsum()
    numbers = table.set_index("path")["slice_number"]
    for _, chain in rows.groupby(starts):
        cuttable = numbers[chain["left"]].to_numpy() != numbers[chain["right"]].to_numpy()
        uncut = np.ones(len(chain), bool)
        uncut[_cuts(chain["correlation"].to_numpy(), cuttable, shortest, longest)] = False
        edges[0] = np.append(edges[0], place[chain["left"]].to_numpy()[uncut])
        edges[1] = np.append(edges[1], place[chain["right"]].to_numpy()[uncut])
    size = len(table) + len(names)
    graph = coo_array((np.ones(len(edges[0])), tuple(edges)), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(table)]


def _cuts(
    alike: NDArray[np.float64], cuttable: NDArray[np.bool_], shortest: int, longest: int
) -> list[int]:
    """Where to cut a chain whose neighbours have these correlations; cut i is after slice i."""
    cuts, parts = [], [(0, len(alike) + 1)]
    while parts:
        start, end = parts.pop()
        places = np.arange(start + shortest - 1, end - shortest)
        places = places[cuttable[places]] if len(places) else places
        if end - start > longest and len(places):
            cut = int(places[np.argmin(alike[places])])
            cuts.append(cut)
            parts += [(start, cut + 1), (cut + 1, end)]
    return cuts


def strata(table: pd.DataFrame) -> list[str]:
    """Category and third of tumour size of each slice; what a split has to spread evenly."""
    size = pd.Series("none", index=table.index)
    tumour = table["tumour_fraction"] > 0
    if tumour.any():
        ranks = table.loc[tumour, "tumour_fraction"].rank(pct=True)
        size[tumour] = pd.cut(ranks, 3, labels=["small", "medium", "large"]).astype(str)
    return list(table["categories"] + "/" + size)


def patients_known(table: pd.DataFrame) -> bool:
    """Whether every slice of a manifest has a given group."""
    return bool(table["group"].notna().all())


def resolve(method: str, table: pd.DataFrame) -> str:
    """The method that splits a data set: official, patient or guessed.

    Args:
        method: Of the split section; `auto` is `patient` where every slice has a given group, and
            there is one for each split besides what retraining took in.
        table: The manifest, without problems.

    Raises:
        InputError: By patient, and slices have none.
    """
    lacking = int(table["group"].isna().sum())
    if method == "patient" and lacking:
        raise InputError(
            f"split.method is patient, but {lacking} of {len(table)} slices have no given patient: "
            "name them with `tumorseg data use FOLDER --groups FILE.csv`, or set split.method: "
            "guessed"
        )
    if method == "auto":
        enough = table.loc[~table["taken_in"], "group"].nunique() >= len(FRACTIONS)
        return "patient" if enough and not lacking else "official"
    return method


def count_patients(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """How many patients each split has, and how many of them train has too.

    Args:
        table: With split and group.

    Returns:
        `patients`, `patients_in_train` and `slices_with_patient_in_train`, each split → number;
        the latter two without train itself.
    """
    trained = table.loc[table["split"] == "train", "group"].dropna()
    shared = table[table["group"].isin(trained)].groupby("split")["group"]
    judged = [split for split in FRACTIONS if split != "train"]
    counts = {
        "patients": table.groupby("split")["group"].nunique().reindex(list(FRACTIONS)),
        "patients_in_train": shared.nunique().reindex(judged),
        "slices_with_patient_in_train": shared.size().reindex(judged),
    }
    return {
        name: {str(split): int(number) for split, number in found.fillna(0).items()}
        for name, found in counts.items()
    }


def grouped(
    table: pd.DataFrame, pairs: pd.DataFrame, shortest: int, longest: int, seed: int
) -> pd.DataFrame:
    """Splits a data set so that slices that belong together are in one split.

    Slices that retraining took in follow their group, or stay where they were put where that is
    new, so that slices which were there before keep their splits.

    Where a chain of numbered slices had to be cut and its parts came to different splits, the
    slices at the cut that are in the larger split are excluded, so that no slice has a neighbour
    in another split.

    Args:
        table: The manifest, without problems.
        pairs: From `tumorseg.data.leakage.find_pairs`.
        shortest: As for `find_groups`.
        longest: As for `find_groups`.
        seed: As for `assign_splits`.

    Returns:
        The manifest with `official_split` (what `split` was), `split` (train, valid, test or
        excluded) and `split_group`.
    """
    groups = find_groups(table, pairs, shortest, longest)
    first = (~table["taken_in"]).to_numpy()
    dealt = find_groups(table[first], pairs, shortest, longest)
    splits = assign_splits([str(number) for number in dealt], strata(table[first]), seed=seed)
    split_of = dict(zip(groups[first], splits, strict=True))
    placed = pd.Series(groups, table.index).map(split_of).fillna(table["split"])
    result = table.assign(official_split=table["split"], split=placed, split_group=groups)
    for larger, others in (("train", ("valid", "test")), ("valid", ("test",))):
        between = neighbours_elsewhere(result, others) & (result["split"] == larger).to_numpy()
        # Slices whose group is known are together already; numbers say nothing across groups.
        result.loc[between & result["group"].isna().to_numpy(), "split"] = EXCLUDED
    return result


def official(table: pd.DataFrame, pairs: pd.DataFrame, shortest: int, longest: int) -> pd.DataFrame:
    """Leaves the splits as the data set has them, and numbers the groups.

    Returns:
        As `grouped`.
    """
    groups = find_groups(table, pairs, shortest, longest)
    return table.assign(official_split=table["split"], split_group=groups)


def fingerprint(rows: pd.DataFrame) -> dict[str, Any]:
    """What tells one test set from another: its size, and digests of its images and labels.

    With it goes whether its groups are patients that the data name.

    Args:
        rows: Manifest rows, with path, sha256, group, split_group and mask_rle.
    """
    images = "\n".join(sorted(rows["sha256"]))
    labels = "\n".join(sorted(rows["sha256"] + " " + rows["mask_rle"]))
    return {
        "slices": len(rows),
        "groups": int(rows["split_group"].nunique()),
        "patients_known": bool(rows["group"].notna().all()),
        "images": hashlib.sha256(images.encode()).hexdigest(),
        "labels": hashlib.sha256(labels.encode()).hexdigest(),
    }
