import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.report_sample import METHODS, make_inputs
from tumorseg.data.coco import SPLITS
from tumorseg.evaluation.results import TITLES
from tumorseg.reporting.report import recorded_source, write_cards
from tumorseg.reporting.report_data import ReportData, caveats, limits


@pytest.fixture(scope="module")
def inputs(workplace, phantom, tmp_path_factory) -> ReportData:
    return make_inputs(workplace, phantom, tmp_path_factory.mktemp("sample"))


def cards(inputs: ReportData, folder: Path) -> tuple[str, str]:
    write_cards(inputs, folder / "model_card.md", folder / "data_card.md")
    return (folder / "model_card.md").read_text(), (folder / "data_card.md").read_text()


def rows(card: str) -> dict[str, list[str]]:
    """The table rows of a card, by their first cell; the first of that name."""
    found: dict[str, list[str]] = {}
    for line in card.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(cells[0], cells)
    return found


def test_the_model_card_has_every_method_s_figures(inputs: ReportData, tmp_path) -> None:
    model, _ = cards(inputs, tmp_path)
    scores = rows(model.split("## What it scores")[1])
    for method in METHODS:
        test, row = inputs.figures["test"][method], scores[TITLES[method]]
        assert row[2].startswith(f"{test['mean_dice']:.3f} ({test['mean_dice_low']:.3f}–")
        assert row[5:7] == [f"{test[f'micro_{name}']:.3f}" for name in ("sensitivity", "precision")]
    assert (
        scores[TITLES["background"]][7] == "– (4 of 5 masks)"
        and scores[TITLES["background"]][10] == "–"
    )
    validation = rows(model.split("Validation split:")[1])
    mean = inputs.figures["valid"]["unet"]["mean_dice"]
    assert validation["U-Net"][2].startswith(f"{mean:.3f}") and TITLES["copy"] not in validation
    assert not re.search(r"\b(nan|None)\b", model)


def test_the_model_card_is_the_winner_s(inputs: ReportData, tmp_path) -> None:
    model, _ = cards(inputs, tmp_path)
    facts = rows(model)
    assert facts["network"][1].startswith("Attention U-Net, 1\u202f235 parameters")
    assert facts["weights"][1] == f"sha256 `{'1abc' * 16}`"
    assert "cut at 0.450" in facts["output"][1]
    assert "not for diagnosis" in model


def test_the_model_card_lists_the_limits(inputs: ReportData, tmp_path) -> None:
    model, _ = cards(inputs, tmp_path)
    listed = model.split("## Limits")[1].split("##")[0].strip().splitlines()
    assert listed == [f"- {one}" for one in caveats(inputs) + limits(inputs)]


def test_healthy_slices_are_counted(inputs: ReportData) -> None:
    path = inputs.test["path"].iloc[0]
    table = inputs.manifest.copy()
    with_tumour = (table["split"] == "test") & (table["tumour_fraction"] > 0)
    table.loc[with_tumour & (table["path"] != path), "tumour_fraction"] = 0.1
    table.loc[(table["split"] == "test") & ~with_tumour, "tumour_fraction"] = 0.1
    table.loc[table["path"] == path, "tumour_fraction"] = 0.1
    every = limits(replace(inputs, manifest=table))
    assert any(one.startswith("No test slice is without tumour") for one in every)
    # One healthy slice: U-Net draws there with one of its two seeds, the other network with none.
    table.loc[table["path"] == path, "tumour_fraction"] = 0.0
    slices = inputs.slices.copy()
    here = slices["path"] == path
    slices.loc[here, ["tp", "fp", "fn"]] = 0
    slices.loc[here & (slices["method"] == "unet") & (slices["seed"] == 1), "fp"] = 7
    found = limits(replace(inputs, manifest=table, slices=slices))
    assert any(one.startswith("U-Net leaves 50.0% of the 1 test slices") for one in found)
    assert any(one.startswith("Attention U-Net leaves 100.0% of the 1 test") for one in found)


def test_unnamed_patients_and_unknown_spacing_are_limits(inputs: ReportData) -> None:
    def said(table: pd.DataFrame) -> str:
        return " ".join(limits(replace(inputs, manifest=table)))

    known = inputs.manifest.assign(group="somebody", spacing_mm="1×1")
    assert "patient is not named" not in said(known) and "spacing" not in said(known)
    known.loc[known.index[:3], "group"] = None
    assert "not named for 3 of 22 slices" in said(known)
    assert "not named for any slice" in said(known.assign(group=None))
    assert "No pixel spacing" in said(known.assign(spacing_mm=""))


def test_the_data_card_counts_the_manifest(inputs: ReportData, tmp_path) -> None:
    _, data = cards(inputs, tmp_path)
    composition = rows(data)
    for split in SPLITS:
        side = inputs.manifest[inputs.manifest["split"] == split]
        row = composition[split]
        assert row[1] == str(len(side))
        assert row[3] == str((side["tumour_fraction"] == 0).sum())
        counts = side["categories"].value_counts()
        assert all(f"{name or 'none'} {n}" in row[4] for name, n in counts.items())
    assert "96×96 (22)" in data and "da7a.dir" in data
    assert not re.search(r"\b(nan|None)\b", data)


def test_what_files_say_of_their_source_is_copied(inputs: ReportData, phantom, tmp_path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(phantom, copy)
    for split in SPLITS:
        path = copy / split / "_annotations.coco.json"
        document = json.loads(path.read_text())
        document["info"] = {"description": "a|b <i>set</i>", "year": "2023", "contributor": ""}
        document["licenses"] = [{"id": 1, "name": f"licence of {split[0]}", "url": "http://x.y"}]
        path.write_text(json.dumps(document))
    source = recorded_source(copy)
    assert source["info year"] == ["2023"] and "info contributor" not in source
    assert source["licence name"] == ["licence of t", "licence of v"]
    _, data = cards(replace(inputs, data=copy), tmp_path)
    assert "| info description | a\\|b &lt;i>set&lt;/i> |" in data
    assert "matter of its licence: licence of t, licence of v." in data
    for split in SPLITS:
        path = copy / split / "_annotations.coco.json"
        document = {k: v for k, v in json.loads(path.read_text()).items() if k[0] in "ca"}
        path.write_text(json.dumps(document))
    _, data = cards(replace(inputs, data=copy), tmp_path)
    assert "record no source and no licence" in data and "licence: none is recorded." in data


def test_failed_checks_are_listed_and_passed_ones_counted(inputs: ReportData, tmp_path) -> None:
    findings = [
        {"name": "blank", "expectation": "no picture is blank", "success": False}
        | {"severity": "warning", "images": 3, "examples": []},
        {"name": "size", "expectation": "sizes are sound", "success": True}
        | {"severity": "critical", "images": 0, "examples": []},
    ]
    _, data = cards(replace(inputs, audit=inputs.audit | {"findings": findings}), tmp_path)
    problems = data.split("## Known problems")[1].split("##")[0].strip().splitlines()
    assert problems == [
        "- warning; expected and not met: no picture is blank (images: 3)",
        "",
        "1 checks passed.",
    ]
