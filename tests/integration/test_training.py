"""Training, and the comparison of what was trained."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import TINY_TRAIN, fit
from tumorseg.core.errors import InputError
from tumorseg.core.params import NETWORKS, EvaluateParams, TrainParams
from tumorseg.data.arrays import Slices, read_slice, sizes, true_masks
from tumorseg.data.coco import decode
from tumorseg.evaluation.calibration import best_threshold
from tumorseg.evaluation.results import reduce, split_optimism, summary, table, verdicts
from tumorseg.evaluation.strata import strata
from tumorseg.imaging.preprocess import mask_to_grid, to_grid, to_input, to_native
from tumorseg.reporting import figures
from tumorseg.training.loss import bce_dice_loss
from tumorseg.training.predict_split import compare, load_network, probabilities
from tumorseg.training.trainer import train

SPLIT = {"method": "official", "digest": "0", "patients_known": False}
EVALUATE = EvaluateParams(
    threshold=0.5,
    test_time_flips=False,
    surface_tolerance=2.0,
    lesion_overlap=0.1,
    bootstrap_samples=200,
    seed=0,
)


def params_with(network: dict | None = None, **common: object) -> TrainParams:
    """TINY_TRAIN with other values of its common section and of the plain U-Net."""
    unet = TINY_TRAIN["unet"] | (network or {})
    return TrainParams.model_validate(
        TINY_TRAIN | {"common": TINY_TRAIN["common"] | common, "unet": unet}
    )


def test_arrays_follow_the_manifest(workplace, phantom) -> None:
    manifest = workplace["manifest"]
    rows = manifest[manifest["split"] == "train"].reset_index()
    slices = workplace["slices"]["train"]
    assert slices.images.shape == slices.masks.shape == (12, 64, 64)
    assert isinstance(slices.images, np.memmap) and slices.images.dtype == np.uint8
    for index, row in rows.iterrows():
        assert np.array_equal(slices.images[index], to_grid(read_slice(phantom / row["path"]), 64))
        mask = decode(row["mask_rle"], row["height"], row["width"])
        assert np.array_equal(slices.masks[index], mask_to_grid(mask, 64))


@pytest.mark.parametrize(
    ("averaging", "best"), [(0.0, "loss"), (0.7, "loss"), (0.0, "dice"), (0.0, "last")]
)
def test_the_weights_are_those_of_the_best_epoch(workplace, tmp_path, averaging, best) -> None:
    # A rate so high that the best epoch is seldom the last.
    rates = {"learning_rate": 0.05, "weight_averaging": averaging}
    params = params_with(epochs=5, dice_over="slice", best_epoch=best, **rates)
    summary = fit(workplace, "unet", params, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "history.csv",
        "unfinished",  # the caller removes it
        "weights.safetensors",
    ]
    history = pd.read_csv(tmp_path / "history.csv").set_index("epoch")
    assert history.index.tolist() == [1, 2, 3, 4, 5] and history["val_loss"].nunique() == 5
    expected = {"loss": history["val_loss"].idxmin(), "dice": history["val_dice"].idxmax()}
    assert summary["epochs"] == 5 and summary["best_epoch"] == (expected | {"last": 5})[best]
    assert summary["val_dice"] == history.loc[summary["best_epoch"], "val_dice"]
    network = load_network("unet", params, tmp_path / "weights.safetensors", EVALUATE)
    valid = workplace["slices"]["valid"]
    images = torch.from_numpy(np.stack([to_input(image) for image in valid.images]))
    masks = torch.from_numpy(valid.masks[:, None].astype(np.float32))
    with torch.inference_mode():
        loss = bce_dice_loss(network.network(images), masks, 1.0, 1.0, "slice")
    assert float(loss) == pytest.approx(summary["val_loss"], abs=1e-4)


def test_the_same_seed_gives_the_same_weights_with_any_workers(workplace, tmp_path) -> None:
    digests = {
        fit(workplace, "unet", params_with(workers=n), tmp_path / str(n))["weights_digest"]
        for n in (0, 2)
    }
    assert len(digests) == 1


def test_a_warm_up_of_one_step_is_none(workplace, tmp_path) -> None:
    # Two epochs of three steps: 1/6 of six is one.
    fit(workplace, "unet", params_with(schedule="one_cycle", warm_up=1 / 6), tmp_path)
    assert pd.read_csv(tmp_path / "history.csv")["learning_rate"].is_monotonic_decreasing


def test_a_network_learns_to_find_a_bright_disc(tmp_path) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.indices((32, 32))
    centres = rng.integers(8, 24, (24, 2, 1, 1))
    masks = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 25).astype(np.uint8)
    images = (60 + 90 * masks + rng.normal(0, 12, masks.shape)).astype(np.uint8)
    slices = dict.fromkeys(("train", "valid"), Slices(images, masks))
    common = TINY_TRAIN["common"] | {"epochs": 20, "learning_rate": 0.003, "plateau_patience": 20}
    larger = TINY_TRAIN["unet"] | {"channels": [8, 16]}
    changed = {"common": common, "unet": larger, "attention_unet": larger}
    params = TrainParams.model_validate(TINY_TRAIN | changed)
    folders = (tmp_path, tmp_path / "c")
    summary = train("attention_unet", 0, params, slices, lambda i, m, _: (i, m), *folders)
    assert summary["val_dice"] > 0.9, summary


@pytest.mark.parametrize(
    ("network", "valid", "message"),
    [
        ({"space_to_depth": 3}, 5, r"image_size is 64.*multiple of 48"),
        ({"norm": "instance", "space_to_depth": 4}, 5, "more than 64 where norm is not none"),
        ({}, 0, "data/valid: has 0 usable images"),
    ],
)
def test_what_cannot_be_trained_is_named(workplace, tmp_path, network, valid, message) -> None:
    params = params_with({"channels": [2, 4, 4, 4, 4]} | network)
    few = Slices(*(array[:valid] for array in vars(workplace["slices"]["valid"]).values()))
    slices = workplace["slices"] | {"valid": few}
    with pytest.raises(InputError, match=message):
        train("unet", 0, params, slices, workplace["policy"], tmp_path, tmp_path / "c")


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
    comparison = compare_all(workplace, load_all(trained))
    scored = comparison.scored
    assert scored.groupby(["method", "split"]).size().to_dict() == {
        ("unet", "valid"): 10,
        ("unet", "test"): 10,
        ("attention_unet", "valid"): 10,
        ("attention_unet", "test"): 10,
        ("ensemble", "valid"): 5,
        ("ensemble", "test"): 5,
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
    parts = strata(scored.query("split == 'test'"), 50, 0)
    text = summary(result, parts)
    sentences = verdicts(result)
    baselines = {m: result["test"][m]["mean_dice"] for m in ("copy", "intensity", "background")}
    beaten = {"copy", max(baselines, key=baselines.__getitem__)}
    assert set(result["paired"]) == {"attention_unet-unet"} | {
        f"{name}-{other}" for name in NETWORKS for other in beaten
    }
    assert len(sentences) == len(result["paired"])
    assert "Attention U-Net" in sentences[0] and "2 seeds" in sentences[0]
    assert result["paired"]["unet-copy"]["slices"] == 5
    overall, by_category, *rest = text.split("\n\n")
    assert rest == sentences and "5 slices of 5 guessed groups" in sentences[0]
    kinds = set(parts.query("by == 'category'")["stratum"])
    assert [len(part.splitlines()) for part in (overall, by_category)] == [8, 8]
    assert "test: 5 slices of 5 guessed groups |" in overall and "mean by guessed group" in overall
    assert by_category.splitlines()[0].count(" guessed group") == len(kinds)
    assert all("| mean of all networks | 0." in part for part in (overall, by_category))
    known = reduce(comparison, SPLIT | {"patients_known": True}, EVALUATE)
    assert "5 slices of 5 patients" in table(known, "test") and "5 patients" in verdicts(known)[0]

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


def test_masks_are_cut_at_the_threshold_that_is_best_on_validation(workplace, trained) -> None:
    params = EVALUATE.model_copy(update={"threshold": "validation", "test_time_flips": True})
    networks = load_all(trained, params)
    comparison = compare_all(workplace, networks, params)
    manifest, run = workplace["manifest"], ("unet", 1)
    valid, test = (manifest.query(f"split == '{split}'") for split in ("valid", "test"))
    maps = probabilities(networks[run], workplace["slices"]["valid"].images)
    native = [to_native(p, size) for p, size in zip(maps, sizes(valid), strict=True)]
    assert comparison.thresholds[run] == best_threshold(native, true_masks(valid))
    (found, *_) = probabilities(networks[run], workplace["slices"]["test"].images)
    first = comparison.scored.query("method == 'unet' and seed == 1 and split == 'test'").iloc[0]
    assert first["path"] == test.iloc[0]["path"]
    expected = to_native(found, (96, 96)) >= comparison.thresholds[run]
    assert np.array_equal(decode(first["mask_rle"], 96, 96), expected)
    # The mean of all networks has a threshold of its own.
    images = workplace["slices"]["test"].images
    mean = np.mean([probabilities(network, images) for network in networks.values()], axis=0)
    (first, *_) = comparison.scored.query("method == 'ensemble' and split == 'test'")["mask_rle"]
    expected = to_native(mean[0], (96, 96)) >= comparison.thresholds["ensemble", None]
    assert np.array_equal(decode(first, 96, 96), expected)
    plain = load_all(trained)[run]
    image = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        mean = (plain(image) + plain(image.flip(-1)).flip(-1)) / 2
        assert torch.allclose(networks[run](image), mean)


def test_split_optimism_needs_both_splits() -> None:
    now = {name: {"mean_dice": dice} for name, dice in (("unet", 0.4), ("copy", 0.3))}
    other = {"unet": {"over_seeds_test_mean_dice": 0.7, "test_copy_mean_dice": 0.69}}
    patient = {"split": {"method": "patient"}, "test": now}
    assert split_optimism(patient, {}, "patient") == {}
    assert split_optimism(patient, other, "patient") == {
        "unet": {"official": 0.7, "patient": 0.4, "gap": 0.3},
        "copy": {"official": 0.69, "patient": 0.3, "gap": 0.39},
    }
    official = patient | {"split": {"method": "official"}}
    found = split_optimism(official, other, "guessed")["unet"]
    assert found == {"official": 0.4, "guessed": 0.7, "gap": -0.3}


@pytest.mark.long
def test_a_compiled_network_trains_alike(workplace, tmp_path) -> None:
    common = {"epochs": 1, "weight_averaging": 0.9, "batch_size": 6}
    fast, slow = (
        fit(workplace, "unet", params_with({"channels": [4, 8]}, **common, compile=c), tmp_path / n)
        for c, n in ((True, "fast"), (False, "slow"))
    )
    assert fast["val_loss"] == pytest.approx(slow["val_loss"], rel=1e-3)
