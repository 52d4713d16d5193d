"""Out-of-distribution detection: what is warned about, and in which words."""

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
from tests.support.phantom_slices import phantoms
from tumorseg.core.errors import InputError
from tumorseg.imaging.decode import decode
from tumorseg.monitoring.ood import FALSE_ALARMS, NAMES, OodDetector, describe


@pytest.fixture(scope="module")
def slices() -> dict[str, NDArray[np.uint8]]:
    counts = {"train": 80, "valid": 60, "test": 60}
    return {split: phantoms(n, seed)[0] for seed, (split, n) in enumerate(counts.items())}


@pytest.fixture(scope="module")
def known(slices) -> dict[str, Any]:
    return describe(slices["train"], slices["valid"])


@pytest.fixture(scope="module")
def detector(known) -> OodDetector:
    return OodDetector(json.loads(json.dumps(known)))  # as it comes to the service


def test_few_slices_of_the_same_kind_are_warned_about(detector, known, slices) -> None:
    over = [detector.distance(grey) > known["threshold"] for grey in slices["valid"]]
    assert 1 <= sum(over) <= np.ceil(FALSE_ALARMS * len(over))
    assert sum(bool(detector.assess(grey, 0.0).warnings) for grey in slices["test"]) <= 4


def test_whitening_is_the_inverse_covariance(detector, slices) -> None:
    """Training slices, slightly changed ones included, lie about √(number of statistics) away."""
    found = np.mean([detector.distance(grey) ** 2 for grey in slices["train"]])
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
        (lambda grey: (grey * 0.15).astype(np.uint8), "less contrast"),
    ],
    ids=["inverted", "noise", "blur", "dark"],
)
def test_a_warning_names_the_difference(detector, slices, spoil, words: str) -> None:
    found = [detector.assess(spoil(grey), 0.0).warnings for grey in slices["test"][:20]]
    assert all(len(one) == 1 for one in found)
    assert sum(words in one[0] for one in found) >= 15


def test_the_distance_hardly_depends_on_the_size(detector, slices) -> None:
    for grey in slices["test"][:10]:
        large = cv2.resize(grey, (480, 480), interpolation=cv2.INTER_CUBIC)
        assert detector.distance(large) == pytest.approx(detector.distance(grey), rel=0.25)


CT = "The DICOM header says CT, and the model was trained on MR."


@pytest.mark.parametrize(
    ("change", "colour", "modality", "words"),
    [
        (np.array, 0.0, "MR", []),
        (np.array, 0.01, None, []),  # a coloured mark in a corner
        (np.array, 0.6, None, ["colour photograph: 60%"]),
        (np.array, 0.0, "CT", [CT]),
        (np.zeros_like, 0.0, "CT", [CT, "uniform"]),
        (lambda grey: np.full_like(grey, 128), 0.0, None, ["uniform"]),
    ],
)
def test_warnings(detector, slices, change, colour, modality, words) -> None:
    found = detector.assess(change(slices["train"][0]), colour, modality).warnings
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


@given(grey=arrays(np.uint8, st.tuples(st.integers(0, 40), st.integers(0, 40))))
def test_every_picture_can_be_assessed(detector, grey: NDArray[np.uint8]) -> None:
    assert all(sentence.endswith(".") for sentence in detector.assess(grey, 0.0).warnings)


@pytest.mark.parametrize("known", [None, {}])
def test_without_a_reference_only_the_modality_is_checked(known) -> None:
    black = np.zeros((64, 64), np.uint8)
    assert OodDetector(known).assess(black, 1.0).warnings == []
    assert OodDetector(known).assess(black, 1.0, "CT").warnings == [CT]


@pytest.mark.parametrize(
    ("value", "expected"), [("CT", "CT"), ("", None), ("DOE^JANE", None), (["MR", "CT"], None)]
)
def test_only_what_can_be_a_modality_is_repeated(value, expected) -> None:
    (dataset,) = series(count=1)
    dataset.Modality = value
    assert decode(dicom_bytes(dataset)).modality == expected


@pytest.mark.parametrize(
    "change", [{"method": "mahalanobis-9"}, {"whiten": [[1.0, 2.0]]}, {"threshold": None}], ids=list
)
def test_a_reference_of_another_version_is_refused(known, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="dvc repro --force register"):
        OodDetector(known | change)
