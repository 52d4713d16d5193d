import json

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.conftest import REPOSITORY
from tumorseg.core.params import AugmentParams, load_params
from tumorseg.data.arrays import Slices
from tumorseg.training.augmentation import load_policy, save_policy
from tumorseg.training.datasets import EpochSampler, TrainingSlices

PARAMS = load_params(AugmentParams, REPOSITORY / "params.yaml")
STILL = {
    name: 0.0
    for name in (
        "affine_probability",
        "horizontal_flip_probability",
        "vertical_flip_probability",
        "intensity_probability",
    )
}


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30] = 1
    return mask * 200 + 20, mask


def policy_of(tmp_path, **changes):
    save_policy(PARAMS.model_copy(update=changes), tmp_path / "policy.json")
    return load_policy(tmp_path / "policy.json")


def test_image_and_mask_move_together(tmp_path, pair) -> None:
    policy = policy_of(tmp_path, affine_probability=1.0, intensity_probability=0.0)
    moved = 0
    for seed in range(30):
        image, mask = policy(*pair, seed)
        assert set(np.unique(mask)) <= {0, 1}
        assert ((image > 120) != mask).mean() < 0.01
        moved += not np.array_equal(mask, pair[1])
    assert moved == 30


@pytest.mark.parametrize("name", ["elastic", "bias_field", "blur", "low_resolution"])
def test_degradations_change_the_image_and_only_elastic_ones_the_mask(tmp_path, pair, name) -> None:
    policy = policy_of(tmp_path, **STILL, **{f"{name}_probability": 1.0})
    image, mask = policy(*pair, 1)
    assert np.abs(image.astype(int) - pair[0]).max() > 3
    assert np.array_equal(mask, pair[1]) != (name == "elastic")
    assert ((image > 120) != mask).mean() < 0.05
    off = policy_of(tmp_path, **STILL, **{f"{name}_probability": 0.0})
    assert np.array_equal(off(*pair, 1)[0], pair[0])


def test_what_is_off_leaves_the_others_as_they_were(tmp_path) -> None:
    save_policy(PARAMS, tmp_path / "policy.json")
    names = json.loads((tmp_path / "policy.json").read_text())["transform"]["transforms"]
    assert [one["__class_fullname__"] for one in names][-1] == "GaussNoise" and len(names) == 6


def test_the_seed_decides(tmp_path, pair) -> None:
    policy = policy_of(tmp_path)
    first, again, other = (policy(*pair, seed)[0] for seed in (5, 5, 6))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    image, mask = policy_of(tmp_path, **STILL)(*pair, 3)
    assert np.array_equal(image, pair[0]) and np.array_equal(mask, pair[1])


def test_transformations_are_drawn_independently(tmp_path, pair) -> None:
    changes = STILL | {"horizontal_flip_probability": 0.5, "intensity_probability": 0.5}
    policy = policy_of(tmp_path, **changes, noise=0.0, gamma=0.0)
    flipped, brightened = [], []
    for seed in range(300):
        image, mask = policy(*pair, seed)
        flipped.append(not np.array_equal(mask, pair[1]))
        brightened.append(set(np.unique(image)) != {20, 220})
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.1)
    assert np.mean(brightened) == pytest.approx(0.5, abs=0.1)
    assert abs(np.corrcoef(flipped, brightened)[0, 1]) < 0.2


def images_of(policy, pair, epoch: int) -> np.ndarray:
    slices = Slices(np.stack([pair[0]] * 3), np.stack([pair[1]] * 3))
    sampler = EpochSampler(3, seed=0)
    sampler.set_epoch(epoch)
    ((images, _, indices),) = DataLoader(TrainingSlices(slices, policy, 0), 3, sampler=sampler)
    assert sorted(indices.tolist()) == [0, 1, 2]
    return images.numpy()


def test_each_epoch_and_slice_draws_anew(tmp_path, pair) -> None:
    policy = policy_of(tmp_path, affine_probability=1.0)
    first, again, second = (images_of(policy, pair, epoch) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(np.sort(first.ravel()), np.sort(second.ravel()))
    assert not np.array_equal(first[0], first[1])
