"""The report, the cards of model and data, and the warnings on both."""

import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.support.report_sample import METHODS, make_report_data
from tumorseg.data.coco import SPLITS
from tumorseg.data.splits import NO_PATIENTS
from tumorseg.evaluation.results import TITLES
from tumorseg.reporting import figures
from tumorseg.reporting.report import page_values, recorded_source, write_cards, write_report
from tumorseg.reporting.report_data import ReportData, caveats, limits, over_seeds
from tumorseg.reporting.wording import fill, number, p_value, with_interval


@pytest.fixture(scope="module")
def report(workplace, phantom, tmp_path_factory) -> ReportData:
    return make_report_data(workplace, phantom, tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def page(report, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "reports" / "report.html"
    write_report(report, path)
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page, as text."""
    found = []
    for row in page.split("<tr>")[1:]:
        row = re.split(r"<tbody>|</table>", row)[0]
        cells = re.split(r"<t[hd][^>]*>", row)[1:]
        found.append([html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in cells])
    return found


class Links(HTMLParser):
    """The addresses of all links and pictures of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        assert tag not in ("script", "link", "iframe", "object"), tag
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]


def test_the_page_needs_nothing_else(page: str) -> None:
    links = Links(page).found
    assert len([link for link in links if link.startswith("data:image/")]) > 20
    assert {re.split("[:,;]", link)[0] for link in links if link[0] != "#"} == {"data"}
    styles = "".join(re.findall(r"<style>.*?</style>|style=\"[^\"]*\"", page, re.DOTALL))
    assert "@import" not in styles and "url(" not in styles
    anchors = {link[1:] for link in links if link[0] == "#"}
    assert anchors == set(re.findall(r'<h2 id="(\w+)"', page)) and len(anchors) == 9


def test_every_method_has_its_own_figures(page: str, report: ReportData) -> None:
    found = rows(page)
    for method in METHODS:
        test = report.figures["test"][method]
        overlap, borders = [row for row in found if row[0] == TITLES[method]][:2]
        assert overlap[2:5] == [
            with_interval(test, name)
            for name in ("mean_dice", "mean_dice_by_patient", "micro_dice")
        ]
        assert overlap[5] == f"{test['mean_iou']:.3f}"
        assert overlap[6] == f"{test['detection_rate']:.1%} / {test['share_dice_zero']:.1%}"
        assert overlap[7:] == [f"{test[f'micro_{n}']:.3f}" for n in ("sensitivity", "precision")]
        assert borders[3] == f"{test['hd95_undefined']} / {test['surface_dice_undefined']}"
        assert borders[4] == f"{test['lesion_sensitivity']:.3f}"
        assert borders[6] == (f"{test['ece_near']:.3f}" if method in METHODS[:3] else "–")
        assert overlap[1] == ("2" if "unet" in method else "–")
    pair = report.figures["paired"]["attention_unet-unet"]
    (row,) = (row for row in found if row[0] == "Attention U-Net minus U-Net")
    by_seed = ", ".join(f"{seed}: {gap:+.3f}" for seed, gap in pair["by_seed"].items())
    assert row[1:3] == [f"{pair['mean']:+.3f}", f"{pair['low']:+.3f} to {pair['high']:+.3f}"]
    assert row[3:5] == [p_value(pair["p_value"]), p_value(pair["p_seeds"])]
    assert row[7] == by_seed and by_seed.count(":") == 2
    runs = [row for row in found if row[0] == "U-Net" and "a <b>CPU</b>" in row]
    assert [row[1] for row in runs] == ["0", "1"] and runs[1][2] == "1,235"
    assert runs[0][7] == "4.0 min" and runs[0][-2:] == ["0abc0abc0abc", "–"]
    assert report.lineage["git_sha"] in page and report.lineage["lock_digest"] in page
    assert "plateau_patience: 2" in page.split("<details>")[1]


def test_what_is_not_a_number_is_a_dash_and_explained(page: str) -> None:
    text = re.sub(r'"data:[^"]*"', "", page)
    assert not re.search(r"\b(nan|None|NaN|inf|<NA>)\b", text)
    row = [row for row in rows(page) if row[0] == TITLES["background"]][1]
    assert row[1] == row[5] == "–"
    assert "“–” means that a figure is not defined" in text
    assert [number(None), number(float("nan")), number(0.12345)] == ["–", "–", "0.123"]
    assert [p_value(0.0004), p_value(0.02), p_value(None)] == ["< 0.001", "0.020", "–"]


def test_names_are_escaped_and_warnings_listed(page, report: ReportData) -> None:
    box = page.split('class="warnings"')[1].split("</div>")[0]
    listed = [html.unescape(sentence) for sentence in re.findall("<li>([^<]*)", box)]
    assert listed and listed == caveats(report)
    values = page_values(report)
    case = values["worst"][0] | {"name": "test/<b>&.png", "categories": "<i>glioma"}
    text = fill("report.html", values | {"worst": [case], "caveats": []})
    assert "<h3>test/&lt;b&gt;&amp;.png</h3>" in text and 'alt="test/&lt;b&gt;&amp;.png:' in text
    assert "category &lt;i&gt;glioma;" in text and not re.search(r"<b>&|<i>glioma", text)
    assert 'class="warnings"' not in text


def test_worst_cases_come_worst_first(report: ReportData) -> None:
    cases = figures.worst_cases(report)
    dice = over_seeds(report.test)
    mean = dice[list(METHODS[:2])].mean(axis=1)
    assert [case["name"] for case in cases] == list(mean.sort_values(kind="stable").index)[:8]
    first = cases[0]
    assert [what for what, _ in first["pictures"]] == [
        *("image", "true label"),
        f"U-Net, Dice {dice['unet'][first['name']]:.2f}",
        f"Attention U-Net, Dice {dice['attention_unet'][first['name']]:.2f}",
    ]
    # The masks are those of the winner's seed.
    other = replace(report, figures=report.figures | {"winner_seed": 0})
    drawn = figures.worst_cases(other)[0]["pictures"]
    assert drawn[:2] == first["pictures"][:2] and drawn[2] != first["pictures"][2]


def test_attention_is_shown_on_the_best_and_worst_slices(report: ReportData) -> None:
    cases = figures.attention_cases(report)
    rows = report.test[(report.test["method"] == "attention_unet") & (report.test["seed"] == 1)]
    dice = rows.loc[rows["tp"] + rows["fn"] > 0, "dice"].sort_values(ascending=False).tolist()
    assert [case["dice"] for case in cases] == [*dice[:2], *dice[2:][-2:]]
    captions = [what for what, _ in cases[0]["pictures"]]
    assert captions[1].startswith("gate 1, 64×64: α 0.") and len(captions) == 3
    assert captions[2].startswith("gate 2, 128×128")


def cards(report: ReportData, folder: Path) -> tuple[str, str]:
    write_cards(report, folder / "model_card.md", folder / "data_card.md")
    return (folder / "model_card.md").read_text(), (folder / "data_card.md").read_text()


def card_rows(card: str) -> dict[str, list[str]]:
    """The table rows of a card, by their first cell; the first of that name."""
    found: dict[str, list[str]] = {}
    for line in card.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(cells[0], cells)
    return found


def test_the_model_card_has_all_figures_of_the_winner_and_its_limits(report, tmp_path) -> None:
    model, _ = cards(report, tmp_path)
    scores = card_rows(model.split("## What it scores")[1])
    for method in METHODS:
        test, row = report.figures["test"][method], scores[TITLES[method]]
        assert row[1:3] == [with_interval(test, f"mean_dice{by}") for by in ("", "_by_patient")]
        assert row[6:8] == [f"{test[f'micro_{name}']:.3f}" for name in ("sensitivity", "precision")]
    background = scores[TITLES["background"]]
    assert background[8] == "– (5 of 5 masks)" and background[11] == "–"
    validation = card_rows(model.split("Validation split, 5 slices of 4 guessed groups:")[1])
    assert validation["U-Net"][1] == with_interval(report.figures["valid"]["unet"], "mean_dice")
    assert TITLES["copy"] not in validation and not re.search(r"\b(nan|None)\b", model)
    facts = card_rows(model)
    assert facts["network"][1].startswith("Attention U-Net, 1,235 parameters")
    assert facts["weights"][1] == f"sha256 `{'1abc' * 16}`"
    assert "cut at 0.450" in facts["output"][1] and "not for diagnosis" in model
    listed = model.split("## Limits")[1].split("##")[0].strip().splitlines()
    assert listed == [f"- {one}" for one in caveats(report) + limits(report)]


def test_a_cross_validation_is_shown_where_there_was_one(report, page, tmp_path) -> None:
    assert "python -m pipelines.crossvalidate" in page
    folds = {str(fold): {"unet": 0.1 * fold, "attention_unet": 0.15 * fold} for fold in (1, 2)}
    kept = {name: report.figures[name] for name in ("split", "test", "paired")}
    write_report(replace(report, crossvalidation=kept | {"folds": folds}), tmp_path / "page.html")
    shown = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "python -m pipelines.crossvalidate" not in shown
    assert ["1", "0.100", "0.150"] in rows(shown) and ["2", "0.200", "0.300"] in rows(shown)
    assert ["mean", "0.150", "0.225"] in rows(shown) and ["SD", "0.071", "0.106"] in rows(shown)
    assert len(rows(shown)) > len(rows(page)) + 5


def test_unknown_patients_are_said_with_the_figures(report, page, tmp_path) -> None:
    for known in (False, True):
        changed = replace(report, split=report.split | {"patients_known": known})
        write_cards(changed, tmp_path / "model.md", tmp_path / "data.md")
        for name in ("model.md", "data.md"):
            assert (NO_PATIENTS in (tmp_path / name).read_text()) != known
    assert NO_PATIENTS in page


def test_healthy_slices_unnamed_patients_and_unknown_spacing_are_limits(report) -> None:
    known = report.manifest.assign(group="somebody", spacing_mm="1×1", tumour_fraction=0.1)
    text = " ".join(limits(replace(report, manifest=known)))
    assert "not named" not in text and "spacing" not in text
    assert "No test slice is without tumour" in text
    # One healthy slice: U-Net draws there with one of its two seeds, the other network with none.
    unknown = known.assign(spacing_mm="")
    unknown.loc[unknown.index[:3], "group"] = None
    unknown.loc[unknown["path"] == report.test["path"].iloc[0], "tumour_fraction"] = 0.0
    slices = report.slices.copy()
    here = slices["path"] == report.test["path"].iloc[0]
    slices.loc[here, ["tp", "fp", "fn"]] = 0
    slices.loc[here & (slices["method"] == "unet") & (slices["seed"] == 1), "fp"] = 7
    text = " ".join(limits(replace(report, manifest=unknown, slices=slices)))
    assert "not named for 3 of 22 slices" in text and "No pixel spacing" in text
    assert " U-Net leaves 50.0% of the 1 test slices" in text
    assert "Attention U-Net leaves 100.0% of the 1 test" in text


def test_the_data_card_counts_the_manifest(report: ReportData, tmp_path) -> None:
    findings = [
        {"name": "blank", "expectation": "no picture is blank", "success": False}
        | {"severity": "warning", "images": 3, "examples": []},
        {"name": "size", "expectation": "sizes are sound", "success": True}
        | {"severity": "critical", "images": 0, "examples": []},
    ]
    _, data = cards(replace(report, audit=report.audit | {"findings": findings}), tmp_path)
    composition = card_rows(data)
    for split in SPLITS:
        side = report.manifest[report.manifest["split"] == split]
        row = composition[split]
        assert row[1] == str(len(side))
        assert row[3] == str((side["tumour_fraction"] == 0).sum())
        counts = side["categories"].value_counts()
        assert all(f"{name or 'none'} {n}" in row[4] for name, n in counts.items())
    assert "96×96 (22)" in data and "da7a.dir" in data
    assert not re.search(r"\b(nan|None)\b", data)
    assert data.split("## Known problems")[1].split("##")[0].strip().splitlines() == [
        "- warning; expected and not met: no picture is blank (images: 3)",
        "",
        "1 checks passed.",
    ]


def test_the_recorded_source_is_on_the_data_card(report: ReportData, phantom, tmp_path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(phantom, copy)
    recorded = {"info": {"description": "a|b <i>set</i>", "year": "2023", "contributor": ""}}
    for split in SPLITS:
        path = copy / split / "_annotations.coco.json"
        recorded["licenses"] = [{"id": 1, "name": f"licence of {split[0]}", "url": "http://x.y"}]
        path.write_text(json.dumps(json.loads(path.read_text()) | recorded))
    source = recorded_source(copy)
    assert source["info year"] == ["2023"] and "info contributor" not in source
    _, data = cards(replace(report, data=copy), tmp_path)
    assert "| info description | a\\|b &lt;i>set&lt;/i> |" in data
    assert "matter of its licence: licence of t, licence of v." in data


@pytest.fixture
def clean(report: ReportData) -> ReportData:
    """Without anything to warn of."""
    flags = dict.fromkeys(("near_duplicate_elsewhere", "duplicate_elsewhere"), False)
    table = report.manifest.assign(box_fill=0.7, group=None, **flags)
    table["slice_number"] = np.arange(len(table)) * 10
    table["split_group"] = table["split"] + table.index.astype(str)
    better = {"mean": 0.3, "low": 0.2, "high": 0.4, "p_value": 0.001, "p_seeds": 0.01}
    better |= {"slices": 60, "groups": 60, "by_seed": {"0": 0.3, "1": 0.3}}
    paired = report.figures["paired"] | {f"{name}-copy": better for name in METHODS[:2]}
    clean = replace(
        report,
        manifest=table,
        figures=report.figures | {"paired": paired},
        split=report.split | {"patients_known": True},
    )
    assert caveats(clean) == []
    return clean


def test_a_leaking_split_is_warned_of(clean: ReportData) -> None:
    table = clean.manifest
    test, train = (table.index[table["split"] == name] for name in ("test", "train"))
    beside = table.copy()
    beside.loc[test[:3], "slice_number"] = table.loc[train[:3], "slice_number"].to_numpy() + 1
    near = table.copy()
    near.loc[test[:2], "near_duplicate_elsewhere"] = True
    divided = table.copy()
    divided.loc[[*train, *test[:4]], "split_group"] = "patient"
    for manifest, words in (
        (beside, "3 have a neighbouring slice in train"),
        (near, "2 have a near duplicate in another split"),
        (divided, "4 have slices of their patient in train"),
    ):
        (found,) = caveats(replace(clean, manifest=manifest))
        assert f"of 5 test slices {words}." in found


@pytest.mark.parametrize(("boxes", "words"), [(12, "12 of 22 labels"), (11, "")])
def test_boxes_are_warned_of(clean: ReportData, boxes: int, words: str) -> None:
    fill = np.where(np.arange(len(clean.manifest)) < boxes, 1.0, 0.7)
    found = caveats(replace(clean, manifest=clean.manifest.assign(box_fill=fill)))
    assert len(found) == bool(words) and all(one.startswith(words) for one in found)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mean": 0.01, "low": -0.1}, "is not shown to beat"),
        ({"mean": -0.3, "low": -0.4, "high": -0.2}, "scores lower than"),
    ],
)
def test_losing_to_a_baseline_is_warned_of(clean, changed, words: str) -> None:
    paired = clean.figures["paired"]
    paired = paired | {"unet-copy": paired["unet-copy"] | changed}
    (found,) = caveats(replace(clean, figures=clean.figures | {"paired": paired}))
    assert found.startswith(f"U-Net {words} the {TITLES['copy']}, which")


def test_one_seed_and_chance_are_warned_of(clean: ReportData) -> None:
    test = {name: row | {"seeds": 1} for name, row in clean.figures["test"].items()}
    runs = [run | {"deterministic": False} for run in clean.runs]
    changed = replace(clean, runs=runs, figures=clean.figures | {"test": test})
    loose, single = caveats(changed)
    assert loose.startswith("Deterministic mode was off") and "one seed only" in single
