"""What ties slices of different splits together: equal files, look-alikes, neighbouring slices."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tumorseg.core.files import atomic_path
from tumorseg.imaging.preprocess import Grey, to_square

PAIRS = Path("artifacts/validate/pairs.parquet")
SIDE = 48  # pixels; the published copy baseline uses the same
BLOCK = 1024  # rows compared at once: 1024 × 1024 correlations take 4 MB

Thumbnails = NDArray[np.uint8]  # (N, SIDE, SIDE)


def thumbnail(grey: Grey) -> NDArray[np.uint8]:
    """A slice, shape (H, W), reduced to uint8 of shape (SIDE, SIDE)."""
    square = Image.fromarray(to_square(grey))
    # The sharpest of the usual filters makes the strongest copy baseline: 0.696 micro Dice on the
    # published set, against 0.691 with area averaging.
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def normalised(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """Centred rows of unit length, float32, shape (N, SIDE²); their products are correlations."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def most_similar(train: Thumbnails, test: Thumbnails) -> NDArray[np.intp]:
    """For each test slice the index of the train slice of highest correlation.

    Args:
        train: Shape (N, SIDE, SIDE).
        test: Shape (M, SIDE, SIDE).

    Returns:
        Shape (M,).
    """
    index = np.zeros(len(test), np.intp)
    best = np.full(len(test), -np.inf, np.float32)
    wanted = normalised(test)
    for start in range(0, len(train), BLOCK):
        found = wanted @ normalised(train[start : start + BLOCK]).T
        at = found.argmax(axis=1)
        value = found[np.arange(len(test)), at]
        better = value > best
        index[better], best[better] = at[better] + start, value[better]
    return index


def similar_pairs(
    thumbnails: Thumbnails, rows: NDArray[np.intp], threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """All pairs of slices whose correlation is at least `threshold`.

    Args:
        thumbnails: Shape (N, SIDE, SIDE), memory-mapped where N is large.
        rows: Which of them to compare, shape (M,).
        threshold: Of the correlation, −1 to 1.

    Returns:
        Positions i < j in `rows`, shape (P, 2), and their correlations, shape (P,).
    """
    pairs, values = [np.empty((0, 2), np.intp)], [np.empty(0, np.float32)]
    for top in range(0, len(rows), BLOCK):
        wanted = normalised(thumbnails[rows[top : top + BLOCK]])
        for left in range(top, len(rows), BLOCK):
            found = wanted @ normalised(thumbnails[rows[left : left + BLOCK]]).T
            i, j = np.nonzero(found >= threshold)
            upper = i + top < j + left
            i, j = i[upper], j[upper]
            pairs.append(np.column_stack([i + top, j + left]))
            values.append(found[i, j])
    return np.concatenate(pairs), np.concatenate(values)


def correlation(thumbnails: Thumbnails, pairs: NDArray[np.intp]) -> NDArray[np.float32]:
    """The correlation of given pairs of slices: indices (P, 2) → float32, shape (P,)."""
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(pairs), BLOCK):
        left, right = pairs[start : start + BLOCK].T
        parts.append(
            np.einsum("ij,ij->i", normalised(thumbnails[left]), normalised(thumbnails[right]))
        )
    return np.concatenate(parts)


def find_pairs(table: pd.DataFrame, thumbnails: Path, threshold: float) -> pd.DataFrame:
    """Slices that look the same, and slices that follow each other by number.

    Args:
        table: From `tumorseg.data.manifest.build_manifest`.
        thumbnails: The array that it wrote.
        threshold: The correlation from which two slices are near duplicates.

    Returns:
        A row a pair: `left` and `right` (paths), `kind` (`exact`, `near` or `neighbour`) and
        `correlation` of the thumbnails. Each equal file is paired with the first of its kind, each
        numbered slice with the next one: enough to find what is connected.
    """
    usable = table[table["problem"].isna()]
    small = np.load(thumbnails, mmap_mode="r")
    first = usable.drop_duplicates("sha256")
    original = usable["sha256"].map(first.set_index("sha256")["path"])
    copies = (usable["path"] != original).to_numpy(bool)
    equal = pd.DataFrame({"left": original[copies], "right": usable["path"][copies]})

    places, values = similar_pairs(small, first["thumbnail"].to_numpy(np.intp), threshold)
    paths = first["path"].to_numpy(object)
    near = pd.DataFrame(
        {"left": paths[places[:, 0]], "right": paths[places[:, 1]], "correlation": values}
    )

    next_to = neighbour_pairs(usable, small)
    parts = {"exact": equal.assign(correlation=1.0), "near": near, "neighbour": next_to}
    return pd.concat([part.assign(kind=kind) for kind, part in parts.items()], ignore_index=True)


def neighbour_pairs(usable: pd.DataFrame, thumbnails: Thumbnails) -> pd.DataFrame:
    """Each numbered slice with the next one of its group, or of all without a group.

    Args:
        usable: Manifest rows without problems.
        thumbnails: Of all rows, shape (N, SIDE, SIDE).

    Returns:
        `left`, `right` and `correlation`, in the order of the numbers, group by group.
    """
    numbered = usable.dropna(subset="slice_number")
    # Not from `usable`: where no slice has a number, pandas would bring all its rows back.
    numbered = numbered.assign(series=numbered["group"].fillna(""))
    numbered = numbered.sort_values(["series", "slice_number", "path"])
    step = numbered["slice_number"].astype(float).diff() <= 1
    follows = (step & (numbered["series"] == numbered["series"].shift())).to_numpy(bool)
    after = np.flatnonzero(follows)
    links = np.column_stack([after - 1, after])
    ends = numbered["path"].to_numpy(object)[links]
    alike = correlation(thumbnails, numbered["thumbnail"].to_numpy(np.intp)[links])
    return pd.DataFrame({"left": ends[:, 0], "right": ends[:, 1], "correlation": alike})


def save_pairs(pairs: pd.DataFrame, path: Path = PAIRS) -> None:
    """Writes the pairs as Parquet."""
    with atomic_path(path) as temporary:
        pairs.to_parquet(temporary, index=False)


def neighbours_elsewhere(table: pd.DataFrame, splits: tuple[str, ...]) -> NDArray[np.bool_]:
    """Whether each slice has a neighbour, by number, in another of these splits.

    A neighbour is a slice of the same group (or of none) whose number differs by at most one.

    Args:
        table: With path, split, group and slice_number.
        splits: Where neighbours count.
    """
    series, numbers = table["group"].fillna(""), table["slice_number"].fillna(-10).astype(int)
    found = np.zeros(len(table), bool)
    for split in splits:
        inside = (table["split"] == split).to_numpy()
        numbered = table["slice_number"].notna().to_numpy()
        held = pd.MultiIndex.from_arrays([series, numbers])[inside & numbered]
        for step in (-1, 0, 1):
            beside = pd.MultiIndex.from_arrays([series, numbers + step])
            found |= beside.isin(held) & numbered & ~inside
    return found


def linked_elsewhere(
    table: pd.DataFrame, pairs: pd.DataFrame, kind: str, splits: tuple[str, ...]
) -> NDArray[np.bool_]:
    """Whether each slice is paired, as `exact` or `near`, with a slice in another of these splits.

    Equal files count as one: what is paired with one of them is paired with all.
    """
    original = pairs[pairs["kind"] == "exact"].set_index("right")["left"]
    content = table["path"].map(original).fillna(table["path"])
    splits_of = table.groupby(content.to_numpy())["split"].agg(set).to_dict()
    partners: dict[Any, set[str]] = dict(splits_of) if kind == "exact" else {}
    if kind == "near":
        near = pairs[pairs["kind"] == "near"]
        for one, two in zip(near["left"], near["right"], strict=True):
            partners.setdefault(one, set()).update(splits_of.get(two, ()))
            partners.setdefault(two, set()).update(splits_of.get(one, ()))
    return np.array(
        [
            bool((partners.get(name, set()) - {own}) & set(splits))
            for name, own in zip(content, table["split"], strict=True)
        ],
        bool,
    )


def mark_leaks(table: pd.DataFrame, pairs: pd.DataFrame, splits: tuple[str, ...]) -> pd.DataFrame:
    """Adds to each slice whether another of these splits holds something too much like it.

    Args:
        table: With path, split, group and slice_number.
        pairs: From `find_pairs`.
        splits: Those that matter.

    Returns:
        The table with the columns `neighbour_elsewhere`, `near_duplicate_elsewhere` and
        `duplicate_elsewhere`.
    """
    return table.assign(
        neighbour_elsewhere=neighbours_elsewhere(table, splits),
        near_duplicate_elsewhere=linked_elsewhere(table, pairs, "near", splits),
        duplicate_elsewhere=linked_elsewhere(table, pairs, "exact", splits),
    )
