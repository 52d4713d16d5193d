import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tumorseg.core.errors import InputError
from tumorseg.data.coco import SPLITS
from tumorseg.data.leakage import find_pairs, linked_elsewhere, neighbours_elsewhere
from tumorseg.data.splits import (
    EXCLUDED,
    assign_splits,
    count_patients,
    find_groups,
    grouped,
    official,
    resolve,
)


def slices(numbers, groups=None, category="glioma", fraction=0.03, sha=None) -> pd.DataFrame:
    """Manifest rows of numbered slices; a number of None means that the name carries none."""
    count = len(numbers)
    return pd.DataFrame(
        {
            "path": [f"train/{index:04d}.png" for index in range(count)],
            "split": "train",
            "thumbnail": range(count),
            "sha256": sha or [f"hash {index}" for index in range(count)],
            "slice_number": pd.array(numbers, dtype="Int64"),
            "group": pd.array(groups or [None] * count, dtype="str"),
            "taken_in": False,
            "categories": category,
            "tumour_fraction": fraction,
            "problem": pd.array([None] * count, dtype="str"),
        }
    )


def patients(lengths, seed=0) -> np.ndarray:
    """Thumbnails: the slices of a patient resemble each other, those of two patients do not."""
    rng = np.random.default_rng(seed)
    faces = [rng.integers(0, 256, (48, 48)) for _ in lengths]
    noisy = [
        face * 0.7 + rng.integers(0, 77, (48, 48))
        for face, length in zip(faces, lengths, strict=True)
        for _ in range(length)
    ]
    return np.stack(noisy).astype(np.uint8)


@pytest.fixture
def pairs_of(tmp_path):
    """The pairs of a table with given thumbnails."""

    def find(table, thumbnails, threshold=0.999):
        np.save(tmp_path / "small.npy", thumbnails)
        return find_pairs(table, tmp_path / "small.npy", threshold)

    return find


def test_a_chain_is_cut_between_patients(pairs_of) -> None:
    lengths = [7, 12, 5, 9, 10, 8]
    table = slices(list(range(100, 100 + sum(lengths))))
    groups = find_groups(table, pairs_of(table, patients(lengths)), shortest=4, longest=12)
    truth = np.repeat(np.arange(len(lengths)), lengths)
    # Cuts only at true borders: each group is one patient, or whole patients.
    borders = np.flatnonzero(np.diff(groups)) + 1
    assert set(borders) <= set(np.flatnonzero(np.diff(truth)) + 1)
    assert len(borders) == len(lengths) - 1


def test_a_gap_in_the_numbers_ends_a_chain(pairs_of) -> None:
    table = slices([1, 2, 3, 5, 6, 90])
    groups = find_groups(table, pairs_of(table, patients([6])), shortest=2, longest=50)
    assert groups.tolist() == [0, 0, 0, 1, 1, 2]


def test_known_patients_stay_whole_whatever_the_numbers_say(pairs_of) -> None:
    names = ["a", "a", "b", "b", "a", "b"]
    table = slices([1, 2, 3, 4, 5, 6], groups=names)
    groups = find_groups(table, pairs_of(table, patients([6])), shortest=1, longest=2)
    assert groups.tolist() == [0, 0, 1, 1, 0, 1]


def test_equal_and_similar_slices_join_groups(pairs_of) -> None:
    table = slices([None] * 5, sha=["x", "y", "x", "z", "w"])
    thumbnails = patients([1] * 5)
    thumbnails[4] = thumbnails[1] // 2 + 9  # the same picture at another gain
    pairs = pairs_of(table, thumbnails, threshold=0.99)
    groups = find_groups(table, pairs, shortest=2, longest=4)
    assert groups.tolist() == [0, 1, 0, 2, 1]


def test_given_patients_count_more_than_likeness(pairs_of) -> None:
    """Only equal files make one group of two patients."""
    names, sha = ["a", "b", "c", None, "d"], ["x", "y", "x", "z", "w"]
    table = slices([1, 2, 3, 4, 5], groups=names, sha=sha)
    pairs = pairs_of(table, np.repeat(patients([1]), 5, axis=0), threshold=0.99)
    assert (pairs["kind"] == "near").sum() == 6
    alike = find_groups(table[table["group"].notna()], pairs, shortest=1, longest=2)
    assert alike.tolist() == [0, 1, 0, 2]
    # What is nobody's goes with whom it resembles.
    assert len(set(find_groups(table, pairs, shortest=1, longest=2))) == 1


def dealt(count: int = 40) -> pd.DataFrame:
    """Slices of patients whose numbers alternate, as in a set stored plane by plane."""
    names = [f"P{number % count:03d}" for number in range(3 * count)]
    table = slices(list(range(3 * count)), groups=names)
    return table.assign(tumour_fraction=np.random.default_rng(0).random(len(table)) * 0.1)


def test_a_patient_split_divides_no_patient_and_survives_what_is_taken_in(pairs_of) -> None:
    table, nothing = dealt(), pairs_of(slices([1]), patients([1]))
    assert resolve("auto", table) == resolve("patient", table) == "patient"
    result = grouped(table, nothing, shortest=2, longest=9, seed=0)
    assert result.groupby("group")[["split", "split_group"]].nunique().eq(1).all(None)
    counts = count_patients(result)
    assert sum(counts["patients"].values()) == 40 and min(counts["patients"].values()) > 2
    assert set(counts["slices_with_patient_in_train"].values()) == {0}
    official_counts = count_patients(table.assign(split=["train", "valid", "test"] * 40))
    assert official_counts["patients_in_train"] == {"valid": 40, "test": 40}

    known = {split: result.loc[result["split"] == split, "group"].iloc[0] for split in SPLITS}
    names = ["P000a", known["valid"], known["train"], "P999", "P000a"]
    new = slices([1, 900, 901, 902, 903], groups=names).assign(taken_in=True)
    new["path"] = "train/0000-" + new.index.astype(str)
    new["split"] = ["valid", "train", "valid", "train", "valid"]
    both = pd.concat([new, table], ignore_index=True)  # before the others in every order
    after = grouped(both, nothing, shortest=2, longest=9, seed=0)
    assert after["split"][5:].tolist() == result["split"].tolist()
    assert after["split"][:5].tolist() == ["valid", "valid", "train", "train", "valid"]


def test_the_method_follows_from_what_is_known() -> None:
    table = dealt(3)
    cases = {
        "some slices have none": table.assign(group=table["group"].where(table.index > 1)),
        "too few": table.assign(group=table["group"].where(table["group"] != "P002", "P001")),
        "too few at first": table.assign(taken_in=table["group"] == "P002"),
        "none": table.assign(group=slices([1])["group"][0]),
    }
    for each in cases.values():
        assert resolve("auto", each) == "official"
    with pytest.raises(InputError, match=r"2 of 9 slices .* --groups FILE\.csv.*: guessed"):
        resolve("patient", cases["some slices have none"])
    assert resolve("guessed", table) == "guessed" and resolve("official", table) == "official"


def chain_pairs(table, alike) -> pd.DataFrame:
    """Neighbours of one chain, with these correlations."""
    paths = table["path"].to_numpy()
    columns = {"left": paths[:-1], "right": paths[1:], "correlation": alike}
    return pd.DataFrame(columns | {"kind": "neighbour"})


def test_slices_of_one_number_are_never_divided() -> None:
    table = slices([1, 2, 2, 3, 4])
    groups = find_groups(table, chain_pairs(table, [0.9, 0.0, 0.5, 0.9]), shortest=1, longest=2)
    assert groups[1] == groups[2] and len(set(groups)) > 1


def test_grouped_leaves_nothing_between_the_splits(pairs_of) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(6, 14, 60).tolist()
    count = sum(lengths)
    table = slices(list(range(count)), category=rng.choice(["glioma", "pituitary"], count))
    table["tumour_fraction"] = rng.random(count) * 0.1
    pairs = pairs_of(table, patients(lengths), threshold=0.98)
    result = grouped(table, pairs, shortest=10, longest=30, seed=0)
    used = result[result["split"] != EXCLUDED].reset_index(drop=True)
    assert not neighbours_elsewhere(used, SPLITS).any()
    assert not linked_elsewhere(used, pairs, "near", SPLITS).any()
    shares = used["split"].value_counts(normalize=True)
    for name, wanted in {"train": 0.7, "valid": 0.2, "test": 0.1}.items():
        assert shares[name] == pytest.approx(wanted, abs=0.05)
    assert (result["split"] == EXCLUDED).mean() < 0.06
    assert (result["official_split"] == "train").all()
    again = grouped(table, pairs, shortest=10, longest=30, seed=0)
    assert again.equals(result)


def test_official_keeps_the_splits_and_numbers_the_groups(pairs_of) -> None:
    table = slices([1, 2, 3, 9])
    table["split"] = ["train", "test", "train", "valid"]
    result = official(table, pairs_of(table, patients([3, 1])), shortest=2, longest=9)
    assert result["split"].equals(table["split"])
    assert result["split_group"].tolist() == [0, 0, 0, 1]


def test_every_category_and_size_is_in_every_split() -> None:
    rng = np.random.default_rng(0)
    strata = rng.choice(["a", "b", "c"], 90, p=[0.6, 0.3, 0.1])
    groups = [f"group {index // 3}" for index in range(90)]
    strata = np.repeat(strata[::3], 3)
    splits = pd.Series(assign_splits(groups, strata))
    share = pd.crosstab(splits, strata, normalize="columns")
    assert (share.loc["train"] - 0.7).abs().max() < 0.12


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=40),
    kinds=st.lists(st.sampled_from("abc"), min_size=40, max_size=40),
    seed=st.integers(0, 5),
)
def test_no_group_is_ever_divided_and_no_split_is_empty(sizes, kinds, seed) -> None:
    groups = np.repeat([f"g{index}" for index in range(len(sizes))], sizes)
    strata = np.repeat(kinds[: len(sizes)], sizes)
    splits = pd.Series(assign_splits(groups, strata, seed=seed))
    assert splits.groupby(groups).nunique().max() == 1
    assert set(splits) == set(SPLITS)
    assert splits.tolist() == assign_splits(groups, strata, seed=seed)


@settings(max_examples=60)
@given(
    alike=st.lists(st.floats(-1, 1), min_size=1, max_size=120),
    shortest=st.integers(1, 20),
    data=st.data(),
)
def test_cuts_leave_no_block_too_short(alike, shortest, data) -> None:
    longest = data.draw(st.integers(2 * shortest, 60))
    steps = data.draw(st.lists(st.integers(0, 1), min_size=len(alike), max_size=len(alike)))
    table = slices(np.cumsum([0, *steps]).tolist())
    groups = find_groups(table, chain_pairs(table, alike), shortest, longest)
    assert np.isin(np.diff(groups), [0, 1]).all()
    assert all(steps[place] for place in np.flatnonzero(np.diff(groups)))
    lengths = np.bincount(groups)
    if len(lengths) > 1:
        assert lengths.min() >= shortest
    if all(steps):
        assert lengths.max() <= longest
