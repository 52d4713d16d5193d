"""Warnings appear exactly where there is reason for them."""

from dataclasses import replace

import numpy as np
import pytest

from tests.report_sample import METHODS, make_inputs
from tumorseg.evaluation.results import TITLES
from tumorseg.reporting.report_data import ReportData, Training, caveats


@pytest.fixture(scope="module")
def inputs(workplace, phantom, tmp_path_factory) -> ReportData:
    return make_inputs(workplace, phantom, tmp_path_factory.mktemp("sample"))


def leaking(inputs: ReportData, count: int, column: str | None = None) -> ReportData:
    """Gives so many test slices a neighbour in train, or marks them in a column."""
    table = inputs.manifest.copy()
    table["group"], table["slice_number"] = None, np.arange(len(table)) * 10
    test = table.index[table["split"] == "test"][:count]
    if column:
        table.loc[test, column] = True
    else:
        train = table.index[table["split"] == "train"][:count]
        table.loc[test, "slice_number"] = table.loc[train, "slice_number"].to_numpy() + 1
    return replace(inputs, manifest=table)


def clean(inputs: ReportData) -> ReportData:
    """Without anything to warn of."""
    flags = dict.fromkeys(("near_duplicate_elsewhere", "duplicate_elsewhere"), False)
    table = leaking(inputs, 0).manifest.assign(box_fill=0.7, **flags)
    table["split_group"] = table["split"] + table.index.astype(str)
    better = {"mean": 0.3, "low": 0.2, "high": 0.4, "p_value": 0.001, "p_seeds": 0.01}
    better |= {"slices": 60, "groups": 60, "by_seed": {"0": 0.3, "1": 0.3}}
    paired = inputs.figures["paired"] | {f"{name}-copy": better for name in METHODS[:2]}
    return replace(inputs, manifest=table, figures=inputs.figures | {"paired": paired})


def test_no_warning_without_a_reason(inputs: ReportData) -> None:
    assert caveats(clean(inputs)) == []


def test_a_leaking_split_is_warned_of(inputs: ReportData) -> None:
    (found,) = caveats(leaking(clean(inputs), 3))
    assert "of 5 test slices 3 have a neighbouring slice in train" in found
    (found,) = caveats(leaking(clean(inputs), 2, "near_duplicate_elsewhere"))
    assert "2 have a near duplicate" in found and "neighbouring" not in found
    torn = clean(inputs).manifest
    torn.loc[torn["split"] == "train", "split_group"] = "patient"
    torn.loc[torn.index[torn["split"] == "test"][:4], "split_group"] = "patient"
    (found,) = caveats(replace(clean(inputs), manifest=torn))
    assert "of 5 test slices 4 have slices of their group in train." in found


@pytest.mark.parametrize(("boxes", "words"), [(22, "All 22 labels"), (12, "12 of 22"), (11, "")])
def test_boxes_are_warned_of(inputs: ReportData, boxes: int, words: str) -> None:
    table = clean(inputs).manifest
    table["box_fill"] = np.where(np.arange(len(table)) < boxes, 1.0, 0.7)
    found = caveats(replace(clean(inputs), manifest=table))
    assert len(found) == bool(words) and all(one.startswith(words) for one in found)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mean": 0.01, "low": -0.1}, "is not shown to beat"),
        ({"mean": -0.3, "low": -0.4, "high": -0.2}, "scores lower than"),
    ],
)
@pytest.mark.parametrize("control", ["copy", "background"])
def test_losing_to_a_control_is_warned_of(inputs, changed, words: str, control: str) -> None:
    sound = clean(inputs)
    paired = sound.figures["paired"]
    paired = paired | {f"unet-{control}": paired["unet-copy"] | changed}
    (found,) = caveats(replace(sound, figures=sound.figures | {"paired": paired}))
    assert found.startswith(f"U-Net {words} the {TITLES[control]}, which")


def test_one_seed_and_chance_are_warned_of(inputs: ReportData) -> None:
    sound = clean(inputs)
    slices = sound.slices[(sound.slices["seed"] != 1) | (sound.slices["method"] == "unet")]
    (found,) = caveats(replace(sound, slices=slices))
    assert found.startswith("One seed only for Attention U-Net:")
    first, *others = sound.trainings
    loose = Training(first.run | {"deterministic": False}, first.history)
    (found,) = caveats(replace(sound, trainings=[loose, *others]))
    assert found.startswith("Deterministic mode was off")
