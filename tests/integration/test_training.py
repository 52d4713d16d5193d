import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY_TRAIN, fit
from tumorseg.core.errors import InputError
from tumorseg.core.params import NETWORKS, EvaluateParams, NetworkParams, TrainParams
from tumorseg.data.arrays import Slices, load_slices
from tumorseg.data.coco import decode
from tumorseg.evaluation.calibration import THRESHOLDS
from tumorseg.evaluation.results import reduce, split_optimism, table, verdicts
from tumorseg.imaging.preprocess import mask_to_grid, to_grid, to_input, to_native
from tumorseg.training.datasets import EpochSampler
from tumorseg.training.loss import bce_dice_loss
from tumorseg.training.predict_split import compare, load_network, probabilities, score_masks
from tumorseg.training.trainer import compiler, train

SPLIT = {"method": "official", "digest": "0"}
EVALUATE = EvaluateParams(
    threshold=0.5,
    test_time_flips=False,
    surface_tolerance=2.0,
    lesion_overlap=0.1,
    bootstrap_samples=200,
    seed=0,
)


def test_arrays_follow_the_manifest(workplace, phantom) -> None:
    from tumorseg.data.arrays import read_slice

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
        "unfinished",  # the caller removes it
        "weights.safetensors",
    ]
    history = pd.read_csv(tmp_path / "a" / "history.csv")
    assert history["epoch"].tolist() == [1, 2] and summary["epochs"] == 2
    assert {"train_loss", "val_loss", "val_dice", "learning_rate"} <= set(history)
    assert summary["best_epoch"] == history.loc[history["val_loss"].idxmin(), "epoch"]
    json.dumps(summary)


@pytest.mark.parametrize("averaging", [0.0, 0.7])
def test_the_weights_are_those_of_the_best_epoch(workplace, tmp_path, averaging) -> None:
    # A rate so high that the best epoch is seldom the last.
    changes = {"epochs": 5, "learning_rate": 0.05, "weight_averaging": averaging}
    changes |= {"dice_over": "slice"}
    params = TrainParams.model_validate(TINY_TRAIN | {"common": TINY_TRAIN["common"] | changes})
    summary = fit(workplace, "unet", params, tmp_path)
    history = pd.read_csv(tmp_path / "history.csv").set_index("epoch")
    assert summary["best_epoch"] == history["val_loss"].idxmin()
    network = load_network("unet", params, tmp_path / "weights.safetensors", EVALUATE)
    valid = workplace["slices"]["valid"]
    images = torch.from_numpy(np.stack([to_input(image) for image in valid.images]))
    masks = torch.from_numpy(valid.masks[:, None].astype(np.float32))
    with torch.inference_mode():
        loss = bce_dice_loss(network.network(images), masks, 1.0, 1.0, "slice")
    assert float(loss) == pytest.approx(summary["val_loss"], abs=1e-4)
    assert history["val_loss"].nunique() == 5
    assert summary["val_dice"] == history.loc[summary["best_epoch"], "val_dice"]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_weights(workplace, train_params, tmp_path, workers) -> None:
    common = train_params.common.model_copy(update={"workers": workers})
    fit(workplace, "unet", train_params, tmp_path / "a")
    fit(workplace, "unet", train_params.model_copy(update={"common": common}), tmp_path / "b")
    first, second = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_warm_up_of_one_step_is_none(workplace, train_params, tmp_path) -> None:
    # Two epochs of three steps: 0.17 of six is one.
    changes = {"schedule": "one_cycle", "warm_up": 1 / 6}
    common = train_params.common.model_copy(update=changes)
    fit(workplace, "unet", train_params.model_copy(update={"common": common}), tmp_path)
    rates = pd.read_csv(tmp_path / "history.csv")["learning_rate"]
    assert rates.is_monotonic_decreasing


def test_a_network_learns_to_find_a_bright_disc(train_params, tmp_path) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.indices((32, 32))
    centres = rng.integers(8, 24, (24, 2, 1, 1))
    masks = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 25).astype(np.uint8)
    images = (60 + 90 * masks + rng.normal(0, 12, masks.shape)).astype(np.uint8)
    slices = dict.fromkeys(("train", "valid"), Slices(images, masks))
    longer = {"epochs": 20, "learning_rate": 0.003, "plateau_patience": 20}
    larger = NetworkParams(channels=[8, 16], norm="batch", space_to_depth=1)
    common = train_params.common.model_copy(update=longer)
    params = TrainParams(seeds=[0], common=common, unet=larger, attention_unet=larger)
    for name in NETWORKS:
        folders = (tmp_path / name, tmp_path / name / "c")
        summary = train(name, 0, params, slices, lambda i, m, _: (i, m), *folders)
        assert summary["val_dice"] > 0.9, summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "batch", "space_to_depth": 3}, r"image_size is 64.*multiple of 48"),
        ({"norm": "instance", "space_to_depth": 4}, "image_size 64 leaves one pixel at the bottom"),
    ],
)
def test_a_grid_that_does_not_fit_is_named(
    workplace, train_params, tmp_path, changes, message
) -> None:
    deep = NetworkParams(channels=[2, 4, 4, 4, 4], **changes)
    with pytest.raises(InputError, match=message):
        fit(workplace, "unet", train_params.model_copy(update={"unet": deep}), tmp_path)


def test_an_empty_split_is_named(workplace, train_params, tmp_path) -> None:
    empty = Slices(np.zeros((0, 64, 64), np.uint8), np.zeros((0, 64, 64), np.uint8))
    slices = workplace["slices"] | {"valid": empty}
    with pytest.raises(InputError, match="data/valid"):
        train("unet", 0, train_params, slices, workplace["policy"], tmp_path, tmp_path / "c")


@pytest.fixture(scope="module")
def trained(workplace, tmp_path_factory) -> tuple[TrainParams, Path]:
    """Both networks with two seeds, as the train stages leave them."""
    params = TrainParams.model_validate(TINY_TRAIN | {"seeds": [0, 1]})
    folder = tmp_path_factory.mktemp("trained")
    for name in NETWORKS:
        for seed in params.seeds:
            fit(workplace, name, params, folder / f"{name}-{seed}", seed)
    return params, folder


def load_all(trained, params=EVALUATE) -> dict:
    training, folder = trained
    return {
        (n, s): load_network(n, training, folder / f"{n}-{s}" / "weights.safetensors", params)
        for n in NETWORKS
        for s in training.seeds
    }


def compare_all(workplace, networks: dict, params=EVALUATE):
    given = (workplace[key] for key in ("slices", "manifest", "thumbnails"))
    return compare(networks, *given, params)


def test_comparison_and_pictures(workplace, trained, phantom, tmp_path) -> None:
    from tumorseg.reporting import figures

    comparison = compare_all(workplace, load_all(trained))
    scored = comparison.scored
    assert scored.groupby(["method", "split"]).size().to_dict() == {
        ("unet", "valid"): 10,
        ("unet", "test"): 10,
        ("attention_unet", "valid"): 10,
        ("attention_unet", "test"): 10,
        ("copy", "test"): 5,
        ("intensity", "test"): 5,
        ("background", "test"): 5,
    }
    assert (scored[["tp", "fp", "fn", "tn"]].sum(axis=1) == 96 * 96).all()
    result = json.loads(json.dumps(reduce(comparison, SPLIT, EVALUATE), allow_nan=False))
    valid = {name: result["valid"][name]["mean_dice"] for name in NETWORKS}
    assert result["winner"] == max(valid, key=valid.__getitem__)
    seeds = {s: result["runs"][f"{result['winner']}-{s}"]["valid"]["mean_dice"] for s in (0, 1)}
    assert result["winner_seed"] == max(seeds, key=seeds.__getitem__)
    healthy = 1 - workplace["manifest"].query("split == 'test'")["tumour_fraction"].mean()
    assert result["test"]["background"]["accuracy"] == pytest.approx(healthy, abs=1e-5)
    assert (result["test"]["unet"]["seeds"], result["test"]["copy"]["seeds"]) == (2, 1)
    assert result["distances"] == {"unit": "pixels", "tolerance": 2.0}
    assert result["test"]["background"]["hd95_undefined"] == 5
    assert 0 <= result["test"]["unet"]["ece"] <= 1
    text = table(result)
    sentences = verdicts(result)
    baselines = {m: result["test"][m]["mean_dice"] for m in ("copy", "intensity", "background")}
    beaten = {"copy", max(baselines, key=baselines.__getitem__)}
    assert set(result["paired"]) == {"attention_unet-unet"} | {
        f"{name}-{other}" for name in NETWORKS for other in beaten
    }
    assert len(sentences) == len(result["paired"])
    assert "Attention U-Net" in sentences[0] and "2 seeds" in sentences[0]
    assert result["paired"]["unet-copy"]["slices"] == 5
    assert len(text.splitlines()) == 7 and "copy of the most similar train slice" in text

    figures.augmentation_gallery(
        workplace["slices"]["train"], workplace["policy"], tmp_path / "augmentation.png"
    )
    histories = pd.concat(
        pd.read_csv(trained[1] / f"{n}-{s}" / "history.csv").assign(network=n, seed=s)
        for n in NETWORKS
        for s in (0, 1)
    )
    figures.png(figures.training_curves(histories), tmp_path / "curves.png")
    figures.comparison_chart(scored.query("split == 'test'"), tmp_path / "comparison.png")
    figures.prediction_gallery(scored, phantom, tmp_path / "predictions.png")
    for name in ("augmentation", "curves", "comparison", "predictions"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize("flips", [False, True])
def test_masks_are_cut_from_the_network_s_own_probabilities(workplace, trained, flips) -> None:
    params = EVALUATE.model_copy(update={"threshold": 0.05, "test_time_flips": flips})
    networks = load_all(trained, params)
    comparison = compare_all(workplace, networks, params)
    assert set(comparison.thresholds.values()) == {0.05}
    found = probabilities(networks["unet", 1], workplace["slices"]["test"].images)
    first = comparison.scored.query("method == 'unet' and seed == 1 and split == 'test'").iloc[0]
    assert first["path"] == workplace["manifest"].query("split == 'test'").iloc[0]["path"]
    expected = to_native(found[0], (96, 96)) >= 0.05
    assert np.array_equal(decode(first["mask_rle"], 96, 96), expected)


def test_a_threshold_is_chosen_where_the_test_split_has_no_say(workplace, trained) -> None:
    params = EVALUATE.model_copy(update={"threshold": "validation"})
    networks = load_all(trained)
    comparison = compare_all(workplace, networks, params)
    rows = workplace["manifest"].query("split == 'valid'")
    for run, threshold in comparison.thresholds.items():
        maps = probabilities(networks[run], workplace["slices"]["valid"].images)

        def mean_dice(cut, maps=maps) -> float:
            masks = [to_native(p, (96, 96)) >= cut for p in maps]
            return score_masks("any", masks, rows, EVALUATE)["dice"].mean()

        assert mean_dice(threshold) == max(mean_dice(cut) for cut in THRESHOLDS)


def test_flips_are_the_mean_of_both_ways(trained) -> None:
    plain, flipped = (
        load_all(trained, EVALUATE.model_copy(update={"test_time_flips": flips}))["unet", 0]
        for flips in (False, True)
    )
    image = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        expected = (plain(image) + plain(image.flip(-1)).flip(-1)) / 2
        assert torch.allclose(flipped(image), expected) and not torch.equal(expected, plain(image))


def test_split_optimism_needs_both_splits() -> None:
    now = {name: {"mean_dice": dice} for name, dice in (("unet", 0.4), ("copy", 0.3))}
    other = {"unet": {"over_seeds_test_mean_dice": 0.7, "test_copy_mean_dice": 0.69}}
    grouped = {"split": {"method": "grouped"}, "test": now}
    assert split_optimism(grouped, {}) == {}
    assert split_optimism(grouped, other) == {
        "unet": {"official": 0.7, "grouped": 0.4, "gap": 0.3},
        "copy": {"official": 0.69, "grouped": 0.3, "gap": 0.39},
    }
    official = grouped | {"split": {"method": "official"}}
    assert split_optimism(official, other)["unet"] == {"official": 0.4, "grouped": 0.7, "gap": -0.3}


@pytest.mark.slow
def test_a_compiled_network_trains_alike(workplace, tmp_path) -> None:
    changes = {"compile": True, "epochs": 1, "weight_averaging": 0.9, "batch_size": 6}
    small = TINY_TRAIN["unet"] | {"channels": [4, 8]}
    params = TrainParams.model_validate(
        TINY_TRAIN | {"common": TINY_TRAIN["common"] | changes, "unet": small}
    )
    fast = fit(workplace, "unet", params, tmp_path / "fast")
    plain = params.model_copy(
        update={"common": params.common.model_copy(update={"compile": False})}
    )
    slow = fit(workplace, "unet", plain, tmp_path / "slow")
    assert fast["val_loss"] == pytest.approx(slow["val_loss"], rel=1e-3)
    first, second = (load_file(tmp_path / n / "weights.safetensors") for n in ("fast", "slow"))
    assert set(first) == set(second)
    made = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert made.exists() == (compiler() is not None)


def test_without_a_compiler_training_goes_on(
    workplace, train_params, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("tumorseg.training.trainer.compiler", lambda: None)
    common = train_params.common.model_copy(update={"compile": True, "epochs": 1})
    fit(workplace, "unet", train_params.model_copy(update={"common": common}), tmp_path)
    assert "no C++ compiler" in capsys.readouterr().out
