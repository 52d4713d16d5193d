"""Folds: disjoint, whole, and never a group or a neighbour in two parts."""

import numpy as np
import pandas as pd
import pytest

from tumorseg.core.errors import InputError
from tumorseg.core.params import CrossvalidateParams
from tumorseg.data import coco
from tumorseg.data.splits import NO_PATIENTS
from tumorseg.training.crossvalidation import (
    divide,
    fold_slices,
    make_folds,
    page,
    pool,
    tabulate,
    train_fold,
)


def table(groups: int = 12, each: int = 5) -> pd.DataFrame:
    """Slices without patients' names, in groups whose last number is next to the next's first."""
    count = groups * each
    return pd.DataFrame(
        {
            "path": [f"train/{number}.png" for number in range(count)],
            "split": np.where(np.arange(count) % 7 == 3, "valid", "train"),
            "split_group": np.arange(count) // each,
            "group": pd.Series([None] * count, dtype="str"),
            "slice_number": pd.Series(range(count), dtype="Int64"),
            "tumour_fraction": np.linspace(0, 0.2, count),
            "categories": "tumour",
        }
    )


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_slice_is_validated_once_by_a_network_that_saw_none_of_its_group(count) -> None:
    slices = pool(table())
    folds = divide(slices, count, seed=0)
    validated = np.concatenate([fold.valid for fold in folds])
    assert sorted(validated) == list(range(len(slices))) and len(folds) == count
    group, number = slices["split_group"].to_numpy(), slices["slice_number"].to_numpy(int)
    for fold in folds:
        assert not set(group[fold.train]) & set(group[fold.valid])
        assert len(fold.train) + len(fold.valid) + fold.excluded == len(slices)
        assert fold.groups == len(set(group[fold.valid]))
        # Groups were cut from one chain: what is next to a validated slice is not trained on.
        distance = np.abs(number[fold.train][:, None] - number[fold.valid])
        assert distance.min() == 2 and fold.excluded > 0
    sizes = [len(fold.valid) for fold in folds]
    assert max(sizes) - min(sizes) <= 10  # two groups


def test_named_patients_exclude_no_slice() -> None:
    named = table()
    named["group"] = [f"patient {number}" for number in named["split_group"]]
    assert [fold.excluded for fold in divide(pool(named), 3, seed=0)] == [0, 0, 0]


def test_test_slices_take_no_part() -> None:
    some = table()
    some.loc[some["split_group"] == 3, "split"] = "test"
    assert 3 not in set(pool(some)["split_group"]) and len(pool(some)) == 55


def test_given_folds_validate_all_slices_that_have_one() -> None:
    named = table()
    named.loc[named["split_group"] == 3, "split"] = "test"
    named["group"] = [f"patient {number}" for number in named["split_group"]]
    named["fold"] = (named["split_group"] % 3 + 2).astype("Int64")
    named.loc[named["split_group"] == 11, "fold"] = pd.NA
    slices = pool(named, coco.SPLITS)
    folds = make_folds(named, "given", seed=0)
    assert [fold.number for fold in folds] == [2, 3, 4] and "test" in set(slices["split"])
    for fold in folds:
        assert set(slices["fold"][fold.valid]) == {fold.number}
        assert set(slices["fold"][fold.train]) == {2, 3, 4} - {fold.number}
        assert len(fold.train) + len(fold.valid) == 55 and fold.excluded == 5
    assert [fold.groups for fold in folds] == [4, 4, 3]
    kept = ("parameters", "epochs", "best_epoch", "val_loss", "val_dice", "seconds")
    found = tabulate(folds, {(n, "unet"): dict.fromkeys(kept, n / 9) for n in (2, 3, 4)})
    assert found["valid_slices"].tolist() == [20, 20, 15]
    assert "3 folds over the 55 slices of train, valid and test" in page(
        found, 64, patients=True, given=True
    )


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (lambda rows: rows["split_group"] * 0 + 1, "the data name 1 folds; set it to a number"),
        (lambda rows: rows["slice_number"] % 5, "divide 12 patients, such as patient 0; set it"),
        (lambda rows: pd.NA, "the data name 0 folds"),
    ],
)
def test_given_folds_that_cannot_be_used_are_one_sentence(folds, message) -> None:
    named = table()
    named["group"] = [f"patient {number}" for number in named["split_group"]]
    named["fold"] = pd.Series(folds(named), index=named.index, dtype="Int64")
    with pytest.raises(InputError, match=message):
        make_folds(named, "given", seed=0)


def test_fewer_groups_than_folds_are_one_sentence() -> None:
    with pytest.raises(InputError, match=r"crossvalidate\.folds is 5, .* form 4 groups"):
        divide(pool(table(groups=4)), 5, seed=0)


@pytest.mark.parametrize("folds", [2, "given"])
def test_a_fold_holds_the_slices_that_its_table_names(workplace, folds) -> None:
    manifest = workplace["manifest"].assign(fold=np.arange(22) % 2)
    slices = pool(manifest, coco.SPLITS)
    (fold, _) = make_folds(manifest, folds, seed=0)
    parts = fold_slices(fold, workplace["folder"] / "arrays")
    whole = np.concatenate([workplace["slices"][split].masks for split in coco.SPLITS])
    for split, rows in (("train", fold.train), ("valid", fold.valid)):
        assert np.array_equal(parts[split].masks, whole[rows]) and len(rows)
        filled = parts[split].masks.any(axis=(1, 2))
        assert np.array_equal(filled, slices["tumour_fraction"].to_numpy()[rows] > 0)


@pytest.mark.long
def test_a_fold_is_trained_once(workplace, train_params, tmp_path) -> None:
    (fold, _) = divide(pool(workplace["manifest"]), 2, seed=0)
    folder = workplace["folder"]
    places = (folder / "arrays", folder / "policy.json", tmp_path / "unet-1")
    workers = CrossvalidateParams(
        scheduler=None, workers=2, threads=1, retries=0, folds=2, networks=["unet"], seed=0
    )
    first = train_fold(fold, "unet", 0, train_params, *places, workers)
    written = (tmp_path / "unet-1" / "weights.safetensors").stat().st_mtime_ns
    assert train_fold(fold, "unet", 0, train_params, *places, workers) == first
    assert (tmp_path / "unet-1" / "weights.safetensors").stat().st_mtime_ns == written


def test_the_page_compares_networks_fold_by_fold() -> None:
    folds = divide(pool(table()), 2, seed=0)
    kept = dict.fromkeys(("parameters", "epochs", "best_epoch", "val_loss", "seconds"), 1)
    dice = {(1, "unet"): 0.5, (1, "attention_unet"): 0.7, (2, "unet"): 0.6}
    dice[2, "attention_unet"] = 0.5
    found = tabulate(folds, {key: kept | {"val_dice": value} for key, value in dice.items()})
    assert "Each patient is in one part." in page(found, 64, patients=True, given=False)
    text = page(found, 64, patients=False, given=False)
    assert NO_PATIENTS in text
    assert "attention_unet − unet |" in text and "64²" in text
    rows = [line.strip("| ").replace("|", " ").split() for line in text.splitlines()[-6:-2]]
    assert rows == [
        ["1", "0.500", "0.700", "0.200"],
        ["2", "0.600", "0.500", "-0.100"],
        ["mean", "0.550", "0.600", "0.050"],
        ["SD", "0.071", "0.141", "0.212"],
    ]
