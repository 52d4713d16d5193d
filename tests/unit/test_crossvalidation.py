"""Folds: disjoint, whole, and never a group or a neighbour in two parts."""

import numpy as np
import pandas as pd
import pytest
import torch

from tumorseg.core.errors import InputError
from tumorseg.core.params import CrossvalidateParams, EvaluateParams
from tumorseg.data import coco
from tumorseg.data.splits import NO_PATIENTS
from tumorseg.evaluation.results import crossvalidated
from tumorseg.evaluation.strata import strata
from tumorseg.training.crossvalidation import (
    divide,
    fold_slices,
    make_folds,
    page,
    pool,
    score_fold,
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


def test_given_folds_validate_all_slices_that_have_one() -> None:
    named = table()
    named.loc[named["split_group"] == 3, "split"] = "test"
    named["group"] = [f"patient {number}" for number in named["split_group"]]
    named["fold"] = (named["split_group"] % 3 + 2).astype("Int64")
    named.loc[named["split_group"] == 11, "fold"] = pd.NA
    slices = pool(named)
    folds = make_folds(named, "given", seed=0)
    assert [fold.number for fold in folds] == [2, 3, 4] and "test" in set(slices["split"])
    for fold in folds:
        assert set(slices["fold"][fold.valid]) == {fold.number}
        assert set(slices["fold"][fold.train]) == {2, 3, 4} - {fold.number}
        assert len(fold.train) + len(fold.valid) == 55 and fold.excluded == 5
    assert [fold.groups for fold in folds] == [4, 4, 3]


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
    slices = pool(manifest)
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


class Answer(torch.nn.Module):
    """Finds what is brighter than a level, whatever the slice."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(20 * (image - self.level))


@pytest.fixture(scope="module")
def judged(workplace) -> dict:
    """Two folds over the workplace's slices, judged, and their figures."""
    manifest = workplace["manifest"]
    folds = make_folds(manifest, 2, seed=0)
    params = EvaluateParams(
        threshold="validation",
        test_time_flips=False,
        surface_tolerance=5.0,
        lesion_overlap=0.1,
        bootstrap_samples=50,
        seed=0,
    )
    networks = {"unet": Answer(1.0), "attention_unet": Answer(2.0)}
    places = (workplace["folder"] / "arrays", pool(manifest), workplace["thumbnails"], params)
    scored = pd.concat([score_fold(fold, networks, *places) for fold in folds], ignore_index=True)
    figures = crossvalidated(scored, False, params)
    return {"folds": folds, "scored": scored, "figures": figures}


def test_every_slice_is_judged_once_by_each_method(workplace, judged) -> None:
    scored, slices = judged["scored"], pool(workplace["manifest"])
    for method in ("unet", "attention_unet", "ensemble", "copy"):
        own = scored[scored["method"] == method]
        assert sorted(own["path"]) == sorted(slices["path"])
    for fold in judged["folds"]:
        own = scored[scored["fold"] == fold.number]
        assert set(own["path"]) == set(slices["path"][fold.valid])
    # Masks are compared with the slices' own.
    own = scored[scored["method"] == "copy"].set_index("path")
    sizes = slices.set_index("path").eval("tumour_fraction * width * height")
    assert np.allclose(own["tp"] + own["fn"], sizes.loc[own.index])


def test_the_page_has_the_figures_of_folds_and_of_all_slices(judged) -> None:
    scored, figures = judged["scored"], judged["figures"]
    text = page_of(judged)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    means = scored.groupby(["fold", "method"])["dice"].mean()
    for fold in judged["folds"]:
        cells = [cell.strip() for cell in rows[str(fold.number)].split("|")][2:-1]
        assert cells[:3] == [str(len(fold.train)), str(len(fold.valid)), str(fold.groups)]
        assert cells[3] == f"{means[fold.number, 'unet']:.3f}"
        assert cells[4] == f"{means[fold.number, 'attention_unet']:.3f}"
    both = means[:, "unet"]
    assert f"{both.mean():.3f}" in rows["mean"] and f"{both.std():.3f}" in rows["SD"]
    every = scored[scored["method"] == "unet"]["dice"].mean()
    assert figures["test"]["unet"]["mean_dice"] == pytest.approx(every, abs=1e-5)
    assert f"| U-Net | {every:.3f} (" in text


def page_of(judged: dict) -> str:
    scored = judged["scored"]
    return page(judged["folds"], judged["figures"], strata(scored, samples=50, seed=0))


def test_the_page_says_whether_groups_are_patients(judged) -> None:
    assert NO_PATIENTS in page_of(judged)
    known = judged | {"figures": judged["figures"] | {"split": {"patients_known": True}}}
    assert "Each patient is in one fold." in page_of(known)
    assert NO_PATIENTS not in page_of(known)


def test_a_row_for_each_training(judged) -> None:
    runs = {
        (fold.number, name): {"parameters": 3, "epochs": fold.number, "seconds": 7.5}
        for fold in judged["folds"]
        for name in ("unet", "attention_unet")
    }
    found = tabulate(judged["folds"], runs, judged["figures"]).set_index(["fold", "network"])
    assert len(found) == 4 and found["epochs"].tolist() == [1, 1, 2, 2]
    for (fold, name), row in found.iterrows():
        assert row["mean_dice"] == judged["figures"]["folds"][str(fold)][name]
    assert found.groupby("fold")["slices"].first().sum() == 22
