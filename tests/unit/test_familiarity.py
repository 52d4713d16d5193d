"""Inputs unlike the training data: what is warned about, in which words, and at what cost."""

import json
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from tests.support.made_volumes import dicom_bytes, series
from tests.support.serving_model import write_model
from tumorseg.core.errors import InputError
from tumorseg.data.phantom import random_slice, template_sections
from tumorseg.imaging.decode import decode
from tumorseg.inference.predictor import load_info
from tumorseg.monitoring.ood import NAMES, OodDetector
from tumorseg.monitoring.ood_reference import FALSE_ALARMS, describe

SIDE = 96


def phantoms(count: int, seed: int) -> NDArray[np.uint8]:
    sections = template_sections()
    rngs = [np.random.default_rng([seed, k]) for k in range(count)]
    return np.stack([random_slice(rng, sections, SIDE)[1] for rng in rngs])


@pytest.fixture(scope="module")
def slices() -> dict[str, NDArray[np.uint8]]:
    counts = {"train": 80, "valid": 60, "test": 60}
    return {split: phantoms(n, seed) for seed, (split, n) in enumerate(counts.items())}


@pytest.fixture(scope="module")
def known(slices) -> dict[str, Any]:
    return describe(slices["train"], slices["valid"])


@pytest.fixture(scope="module")
def familiar(known) -> OodDetector:
    # Through JSON, as it comes to the service.
    return OodDetector(json.loads(json.dumps(known)))


def test_the_threshold_is_that_of_the_validation_slices(familiar, known, slices) -> None:
    over = [familiar.distance(grey) > known["threshold"] for grey in slices["valid"]]
    assert 1 <= sum(over) <= np.ceil(FALSE_ALARMS * len(over))


def test_test_slices_are_rarely_warned_about(familiar, slices) -> None:
    assert sum(bool(familiar.warnings(grey, 0.0)) for grey in slices["test"]) <= 4


def test_whitening_is_the_inverse_covariance(familiar, slices) -> None:
    """Training slices, slightly changed ones included, lie about √(number of statistics) away."""
    found = np.mean([familiar.distance(grey) ** 2 for grey in slices["train"]])
    assert 0.4 * len(NAMES) < found < 1.3 * len(NAMES)


def noisy(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, 40, grey.shape)
    return np.clip(grey + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda grey: 255 - grey, "corners are not the black around a head"),
        (noisy, "noisier"),
        (lambda grey: cv2.GaussianBlur(grey, (0, 0), 3), "blurred"),
        (lambda grey: np.maximum(grey, 120), "corners are not the black around a head"),
        (lambda grey: (grey * 0.15).astype(np.uint8), "less contrast"),
    ],
    ids=["inverted", "noise", "blur", "bright ground", "dark"],
)
def test_what_is_unlike_is_said(familiar, slices, spoil, words: str) -> None:
    said = [familiar.warnings(spoil(grey), 0.0) for grey in slices["test"][:20]]
    assert all(len(one) == 1 for one in said)
    assert sum(words in one[0] for one in said) >= 15


def test_a_slice_is_judged_alike_at_any_size(familiar, slices) -> None:
    for grey in slices["test"][:10]:
        large = cv2.resize(grey, (480, 480), interpolation=cv2.INTER_CUBIC)
        assert familiar.distance(large) == pytest.approx(familiar.distance(grey), rel=0.25)


def test_a_colour_photograph_is_named(familiar, slices) -> None:
    (sentence,) = familiar.warnings(slices["train"][0], 0.6)
    assert "colour photograph" in sentence and "60%" in sentence
    assert familiar.warnings(slices["train"][0], 0.01) == []  # a coloured mark in a corner


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_uniform_picture_is_named(familiar, value: int) -> None:
    (sentence,) = familiar.warnings(np.full((64, 80), value, np.uint8), 0.0)
    assert "uniform" in sentence


@given(grey=arrays(np.uint8, st.tuples(st.integers(0, 40), st.integers(0, 40))))
def test_no_picture_is_too_odd(familiar, grey: NDArray[np.uint8]) -> None:
    assert all(sentence.endswith(".") for sentence in familiar.warnings(grey, 0.0))


def test_an_older_model_warns_about_nothing(tmp_path) -> None:
    info = load_info(write_model(tmp_path))
    assert info.inputs is None
    for known in (info.inputs, {}):
        assert OodDetector(known).warnings(np.zeros((64, 64), np.uint8), 1.0) == []


def test_another_modality_is_named_beside_what_else_is_unlike(familiar, slices) -> None:
    grey = slices["train"][0]
    assert familiar.warnings(grey, 0.0, "MR") == familiar.warnings(grey, 0.0, None) == []
    (sentence,) = familiar.warnings(grey, 0.0, "CT")
    assert sentence == "The DICOM header says CT, and the model was trained on MR."
    assert OodDetector(None).warnings(grey, 0.0, "CT") == [sentence]
    uniform = familiar.warnings(np.zeros((64, 64), np.uint8), 0.0, "CT")
    assert uniform[0] == sentence and "uniform" in uniform[1]


@pytest.mark.parametrize(
    ("value", "expected"), [("CT", "CT"), ("", None), ("DOE^JANE", None), (["MR", "CT"], None)]
)
def test_only_what_can_be_a_modality_is_repeated(value, expected) -> None:
    (dataset,) = series(count=1)
    dataset.Modality = value
    assert decode(dicom_bytes(dataset)).modality == expected


@pytest.mark.parametrize(
    "change",
    [
        {"method": "mahalanobis-9"},
        {"mean": [0.0]},
        {"whiten": [[1.0]]},
        {"side": 3},
        {"threshold": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_this_version_cannot_read_is_refused(known, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="dvc repro --force register"):
        OodDetector(known | change)
