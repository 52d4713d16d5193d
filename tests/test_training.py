import json

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from tests.conftest import fit
from tumorseg.arrays import Slices, load_slices
from tumorseg.coco import decode
from tumorseg.draws import EpochSampler
from tumorseg.errors import InputError
from tumorseg.evaluation import compare, honesty_gap, load_network, reduce, table, verdicts
from tumorseg.params import (
    NETWORKS,
    EvaluateParams,
    NetworkParams,
    TrainParams,
)
from tumorseg.preprocess import mask_to_grid, to_grid, to_native
from tumorseg.training import train

SPLIT = {"method": "official", "digest": "0"}
EVALUATE = EvaluateParams(threshold=0.5, bootstrap_samples=200, seed=0)


def test_arrays_follow_the_manifest(workplace, phantom) -> None:
    from tumorseg.arrays import read_slice

    manifest = workplace["manifest"]
    rows = manifest[manifest["split"] == "train"].reset_index()
    slices = workplace["slices"]["train"]
    assert slices.images.shape == slices.masks.shape == (12, 64, 64)
    assert isinstance(slices.images, np.memmap) and slices.images.dtype == np.uint8
    for index, row in rows.iterrows():
        assert np.array_equal(slices.images[index], to_grid(read_slice(phantom / row["path"]), 64))
        mask = decode(row["mask_rle"], row["height"], row["width"])
        assert np.array_equal(slices.masks[index], mask_to_grid(mask, 64))


def test_missing_arrays_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match="dvc repro augment"):
        load_slices("train", tmp_path)


def test_order_is_the_same_for_both_networks_and_new_each_epoch() -> None:
    first, second = EpochSampler(50, seed=3), EpochSampler(50, seed=3)
    assert list(first) == list(second)
    second.set_epoch(1)
    assert [i for _, i in first] != [i for _, i in second]
    assert sorted(i for _, i in second) == list(range(50))
    assert {epoch for epoch, _ in second} == {1}


def test_training_writes_weights_history_and_summary(workplace, train_params, tmp_path) -> None:
    summary = fit(workplace, "attention_unet", train_params, tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "history.csv",
        "weights.safetensors",
    ]
    history = pd.read_csv(tmp_path / "a" / "history.csv")
    assert history["epoch"].tolist() == [1, 2] and summary["epochs"] == 2
    assert {"train_loss", "val_loss", "val_dice", "learning_rate"} <= set(history)
    assert summary["best_epoch"] == history.loc[history["val_loss"].idxmin(), "epoch"]
    json.dumps(summary)


def test_the_same_seed_gives_the_same_weights(workplace, train_params, tmp_path) -> None:
    for name in ("a", "b"):
        fit(workplace, "unet", train_params, tmp_path / name)
    first, second = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_training_runs_the_policy_on_every_slice_of_every_epoch(
    workplace, train_params, tmp_path
) -> None:
    seeds = []

    def spy(image, mask, seed):
        seeds.append(seed)
        return workplace["policy"](image, mask, seed)

    train("unet", train_params, workplace["slices"], spy, tmp_path, tmp_path / "c")
    assert len(seeds) == len(set(seeds)) == 2 * 12


def test_a_network_learns_to_find_a_bright_disc(train_params, tmp_path) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.indices((32, 32))
    centres = rng.integers(8, 24, (24, 2, 1, 1))
    masks = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 25).astype(np.uint8)
    images = (60 + 90 * masks + rng.normal(0, 12, masks.shape)).astype(np.uint8)
    slices = dict.fromkeys(("train", "valid"), Slices(images, masks))
    longer = {"epochs": 20, "learning_rate": 0.003, "plateau_patience": 20}
    larger = NetworkParams(channels=[8, 16], batch_norm=True, stem=1)
    params = TrainParams(
        common=train_params.common.model_copy(update=longer), unet=larger, attention_unet=larger
    )
    for name in NETWORKS:
        folders = (tmp_path / name, tmp_path / name / "c")
        summary = train(name, params, slices, lambda i, m, _: (i, m), *folders)
        assert summary["val_dice"] > 0.9, summary


def test_a_grid_that_does_not_fit_is_named(workplace, train_params, tmp_path) -> None:
    deep = NetworkParams(channels=[2, 4, 4, 4, 4], batch_norm=True, stem=3)
    params = train_params.model_copy(update={"unet": deep})
    with pytest.raises(InputError, match=r"image_size is 64.*multiple of 48"):
        fit(workplace, "unet", params, tmp_path)


def test_an_empty_split_is_named(workplace, train_params, tmp_path) -> None:
    empty = Slices(np.zeros((0, 64, 64), np.uint8), np.zeros((0, 64, 64), np.uint8))
    slices = workplace["slices"] | {"valid": empty}
    with pytest.raises(InputError, match="data/valid"):
        train("unet", train_params, slices, workplace["policy"], tmp_path, tmp_path / "c")


def test_comparison_and_pictures(workplace, train_params, phantom, tmp_path) -> None:
    from tumorseg import figures

    for name in NETWORKS:
        fit(workplace, name, train_params, tmp_path / name)
    networks = {
        name: load_network(name, train_params, tmp_path / name / "weights.safetensors")
        for name in NETWORKS
    }
    comparison = compare(
        networks,
        workplace["slices"],
        workplace["manifest"],
        workplace["thumbnails"],
        EVALUATE,
    )
    assert comparison.groupby(["method", "split"]).size().to_dict() == {
        ("unet", "valid"): 5,
        ("unet", "test"): 5,
        ("attention_unet", "valid"): 5,
        ("attention_unet", "test"): 5,
        ("copy", "test"): 5,
        ("intensity", "test"): 5,
        ("background", "test"): 5,
    }
    assert (comparison[["tp", "fp", "fn", "tn"]].sum(axis=1) == 96 * 96).all()
    result = json.loads(json.dumps(reduce(comparison, SPLIT, EVALUATE)))
    valid = {name: result["valid"][name]["mean_dice"] for name in NETWORKS}
    assert result["winner"] == max(valid, key=valid.__getitem__)
    healthy = 1 - workplace["manifest"].query("split == 'test'")["tumour_fraction"].mean()
    assert result["test"]["background"]["accuracy"] == pytest.approx(healthy, abs=1e-5)
    text = table(result)
    sentences = verdicts(result)
    assert len(sentences) == 3 and "Attention U-Net" in sentences[0]
    assert result["paired"]["unet-copy"]["slices"] == 5
    assert len(text.splitlines()) == 7 and "copy of the most similar train slice" in text

    figures.augmentation_gallery(
        workplace["slices"]["train"], workplace["policy"], tmp_path / "augmentation.png"
    )
    histories = {n: pd.read_csv(tmp_path / n / "history.csv") for n in NETWORKS}
    figures.training_curves(histories, tmp_path / "curves.png")
    figures.comparison_chart(comparison.query("split == 'test'"), tmp_path / "comparison.png")
    figures.prediction_gallery(comparison, phantom, tmp_path / "predictions.png")
    for name in ("augmentation", "curves", "comparison", "predictions"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_masks_are_cut_from_the_network_s_own_probabilities(
    workplace, train_params, tmp_path
) -> None:
    from tumorseg.evaluation import probabilities

    fit(workplace, "unet", train_params, tmp_path)
    network = load_network("unet", train_params, tmp_path / "weights.safetensors")
    assert set(load_file(tmp_path / "weights.safetensors")) == set(network.state_dict())
    rows = workplace["manifest"].query("split == 'test'")
    low = EVALUATE.model_copy(update={"threshold": 0.05})
    comparison = compare(
        {"unet": network, "attention_unet": network},
        workplace["slices"],
        workplace["manifest"],
        workplace["thumbnails"],
        low,
    )
    found = probabilities(network, workplace["slices"]["test"].images)
    first = comparison.query("method == 'unet' and split == 'test'").iloc[0]
    expected = to_native(found[0], (96, 96)) >= 0.05
    assert first["path"] == rows.iloc[0]["path"]
    assert np.array_equal(decode(first["mask_rle"], 96, 96), expected)


def test_the_honesty_gap_needs_both_splits() -> None:
    now = {name: {"mean_dice": dice} for name, dice in (("unet", 0.4), ("copy", 0.3))}
    other = {"unet": {"test_mean_dice": 0.7, "test_copy_mean_dice": 0.69}}
    grouped = {"split": {"method": "grouped"}, "test": now}
    assert honesty_gap(grouped, {}) == {}
    assert honesty_gap(grouped, other) == {
        "unet": {"official": 0.7, "grouped": 0.4, "gap": 0.3},
        "copy": {"official": 0.69, "grouped": 0.3, "gap": 0.39},
    }
    official = grouped | {"split": {"method": "official"}}
    assert honesty_gap(official, other)["unet"] == {"official": 0.4, "grouped": 0.7, "gap": -0.3}
