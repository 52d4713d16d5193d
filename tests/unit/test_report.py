"""The report, the cards of model and data, and the warnings on both."""

import base64
import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.report_sample import METHODS, make_report_data
from tumorseg.data.coco import SPLITS
from tumorseg.evaluation.paired import difference
from tumorseg.evaluation.results import TITLES
from tumorseg.evaluation.strata import differences
from tumorseg.reporting import figures
from tumorseg.reporting.report import page_values, recorded_source, write_cards, write_report
from tumorseg.reporting.report_data import ReportData, Training, caveats, limits, over_seeds
from tumorseg.reporting.wording import duration, fill, fixed, p_value, signed_span, whole, with_span


@pytest.fixture(scope="module")
def report(workplace, phantom, tmp_path_factory) -> ReportData:
    return make_report_data(workplace, phantom, tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def values(report) -> dict:
    return page_values(report)


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


def test_the_page_needs_nothing_else(page: str) -> None:
    class Links(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag, attrs) -> None:
            assert tag not in ("script", "link", "iframe", "object"), tag
            self.found += [
                value for name, value in attrs if name in ("src", "href", "srcset", "data")
            ]

    links = Links()
    links.found = []
    links.feed(page)
    assert len([link for link in links.found if link.startswith("data:image/")]) > 20
    assert {re.split("[:,;]", link)[0] for link in links.found if link[0] != "#"} == {"data"}
    styles = "".join(re.findall(r"<style>.*?</style>|style=\"[^\"]*\"", page, re.DOTALL))
    assert "@import" not in styles and "url(" not in styles
    anchors = {link[1:] for link in links.found if link[0] == "#"}
    assert anchors == set(re.findall(r'<h2 id="(\w+)"', page)) and len(anchors) == 8


def test_every_method_has_its_own_figures(page: str, report: ReportData) -> None:
    found = rows(page)
    for method in METHODS:
        test = report.figures["test"][method]
        overlap, borders = [row for row in found if row[0] == TITLES[method]][:2]
        assert overlap[3].startswith(f"{test['mean_dice']:.3f} ({test['mean_dice_low']:.3f}–")
        assert overlap[4].startswith(f"{test['mean_iou']:.3f} (")
        assert overlap[5].startswith(f"{test['micro_dice']:.3f} ({test['micro_dice_low']:.3f}–")
        names = ("micro_iou", "micro_sensitivity", "micro_precision")
        assert overlap[6:] == [f"{test[name]:.3f}" for name in names]
        assert borders[3] == f"{test['hd95_undefined']} / {test['surface_dice_undefined']}"
        assert borders[4] == f"{test['lesion_sensitivity']:.3f}"
        if "unet" in method:
            assert borders[6] == f"{test['ece_near']:.3f}" and overlap[2] == "2"
            valid = f"{report.figures['valid'][method]['mean_dice']:.3f}"
            assert any(row[0] == TITLES[method] and row[3].startswith(valid) for row in found)
        else:
            assert borders[6] == "–" and overlap[2] == "–"


def test_pairs_are_printed_with_their_intervals(page: str, report: ReportData) -> None:
    found = {row[0]: row for row in rows(page)}
    pair = report.figures["paired"]["attention_unet-unet"]
    row = found["Attention U-Net minus U-Net"]
    by_seed = ", ".join(f"{seed}: {gap:+.3f}" for seed, gap in pair["by_seed"].items())
    assert row[1:3] == [f"{pair['mean']:+.3f}", f"{pair['low']:+.3f} to {pair['high']:+.3f}"]
    assert row[3:5] == [p_value(pair["p_value"]), p_value(pair["p_seeds"])]
    assert row[7] == by_seed and by_seed.count(":") == 2


def test_what_is_not_a_number_is_a_dash_and_explained(page: str) -> None:
    text = re.sub(r'"data:[^"]*"', "", page)
    assert not re.search(r"\b(nan|None|NaN|inf|<NA>)\b", text)
    row = [row for row in rows(page) if row[0] == TITLES["background"]][1]
    assert row[1] == row[5] == "–"
    assert "“–” means that a figure is not defined" in text
    assert "slices without tumour have no lesion to find" in text


def test_runs_parameters_and_small_strata_are_on_the_page(page: str, report: ReportData) -> None:
    runs = [row for row in rows(page) if row[0] == "U-Net" and "a <b>CPU</b>" in row]
    assert [row[1] for row in runs] == ["0", "1"] and runs[1][2] == whole(1235)
    assert runs[0][7] == "4 min" and runs[0][-2:] == ["0abc0abc0abc", "–"]
    assert report.lineage["git_sha"] in page and report.lineage["lock_digest"] in page
    assert "plateau_patience: 2" in page.split("<details>")[1]
    assert "having fewer than 10 slices or 6 groups: size small (" in page


def test_names_are_escaped(values: dict) -> None:
    case = values["worst"][0] | {"name": "test/<b>&.png", "categories": "<i>glioma"}
    text = fill("report.html", values | {"worst": [case], "skipped": ["category <u> (3)"]})
    assert "<h3>test/&lt;b&gt;&amp;.png</h3>" in text and 'alt="test/&lt;b&gt;&amp;.png:' in text
    assert "category &lt;i&gt;glioma;" in text and "category &lt;u&gt; (3)" in text
    assert not re.search(r"<b>&|<i>glioma|<u>", text)


def test_worst_cases_come_worst_first(report: ReportData) -> None:
    cases = figures.worst_cases(report)
    scored = over_seeds(report.test)
    dice = scored[scored["method"].isin(METHODS[:2])].groupby("path")["dice"].mean()
    assert [case["name"] for case in cases] == list(dice.sort_values(kind="stable").index)[:8]
    first = cases[0]
    captions = [what for what, _ in first["pictures"]]
    assert [what.split(",")[0] for what in captions] == [
        *("image", "true label", "U-Net", "Attention U-Net")
    ]
    of_slice = scored.set_index(["path", "method"])["dice"]
    assert f"Dice {of_slice[first['name'], 'unet']:.2f}" in captions[2]
    fact = report.manifest.set_index("path").loc[first["name"]]
    assert first["tumour_fraction"] == fact["tumour_fraction"]
    # The masks are those of the winner's seed.
    other = replace(report, figures=report.figures | {"winner_seed": 0})
    drawn = figures.worst_cases(other)[0]["pictures"]
    assert drawn[:2] == first["pictures"][:2] and drawn[2] != first["pictures"][2]


def test_attention_is_shown_on_good_and_bad_slices(report: ReportData) -> None:
    cases = figures.attention_cases(report)
    rows = report.test[(report.test["method"] == "attention_unet") & (report.test["seed"] == 1)]
    tumour = rows[rows["tp"] + rows["fn"] > 0].set_index("path")["dice"]
    assert 2 <= len(cases) <= 4 and {case["name"] for case in cases} <= set(tumour.index)
    good, bad = ([c["dice"] for c in cases if c["good"] is g] for g in (True, False))
    assert max(good) == tumour.max() and min(bad) == tumour.min()
    captions = [what for what, _ in cases[0]["pictures"]]
    assert captions[1].startswith("gate 1, 64×64: α 0.") and len(captions) == 3
    assert captions[2].startswith("gate 2, 128×128")


def test_warnings_are_on_the_page_where_there_are_any(page, values, report: ReportData) -> None:
    box = page.split('class="warnings"')[1].split("</div>")[0]
    listed = [html.unescape(sentence) for sentence in re.findall("<li>([^<]*)", box)]
    assert listed and listed == caveats(report)
    assert 'class="warnings"' not in fill("report.html", values | {"caveats": []})


def numbered(count: int) -> pd.DataFrame:
    """Two methods on so many slices; the first better by 0.1 on the second half."""
    base = np.linspace(0.2, 0.8, count)
    table = {"path": [f"{n}.png" for n in range(count)], "group": range(count)}
    gain = np.where(np.arange(count) < count / 2, 0.0, 0.1)
    dice = {"attention_unet": base + gain, "unet": base}
    return pd.concat([pd.DataFrame(table | {"method": m, "dice": d}) for m, d in dice.items()])


def test_differences_by_stratum() -> None:
    scored = numbered(36)
    number = scored["path"].map({path: n for n, path in enumerate(scored["path"].unique())})
    scored = scored.assign(tp=number, fp=0, fn=0, tn=100 - number)
    scored["category"] = ["glioma; cyst" if n < 9 else "glioma" for n in number]
    found, skipped = differences(scored, "attention_unet", "unet", 50, 0)
    assert skipped == ["size no tumour (1)", "category cyst (9)"]
    assert found["slices"].tolist() == [12, 11, 12, 36]
    assert found["stratum"].str.split(" ").str[0].tolist() == ["small", "medium", "large", "glioma"]
    found = found.set_index(found["stratum"].str.split(" ").str[0])
    assert found.loc["small", "mean"] == pytest.approx(0)
    assert found.loc["large", "mean"] == found.loc["large", "low"] == pytest.approx(0.1)
    assert found.loc["glioma", "high"] == difference(scored, "attention_unet", "unet", 50, 0).high


def test_a_chart_has_a_point_a_slice_and_is_the_same_each_time() -> None:
    scored = numbered(23)
    url = figures.scatter(scored, "unet", "attention_unet")
    assert url == figures.scatter(scored, "unet", "attention_unet")
    drawn = base64.b64decode(url.split(",")[1]).decode()
    points = drawn.split('id="PathCollection_1"')[1].split('id="matplotlib.axis_1"')[0]
    assert points.count("<use ") == 23


def test_figures_as_text() -> None:
    assert [fixed(None), fixed(float("nan")), fixed(pd.NA), fixed(0.12345)] == ["–"] * 3 + ["0.123"]
    assert with_span(float("nan"), 0.1, 0.2) == "–" and with_span(0.5, None, None) == "0.500 (–)"
    assert signed_span(-0.1, 0.2) == "-0.100 to +0.200"
    assert [p_value(0.0004), p_value(0.02)] == ["< 0.001", "0.020"]
    assert [duration(x) for x in (5, 240, 9000, None)] == ["5 s", "4 min", "2.5 h", "–"]
    assert whole(1234567) == "1\u202f234\u202f567"


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
        assert row[2].startswith(f"{test['mean_dice']:.3f} ({test['mean_dice_low']:.3f}–")
        assert row[5:7] == [f"{test[f'micro_{name}']:.3f}" for name in ("sensitivity", "precision")]
    background = scores[TITLES["background"]]
    assert background[7] == "– (4 of 5 masks)" and background[10] == "–"
    validation = card_rows(model.split("Validation split:")[1])
    mean = report.figures["valid"]["unet"]["mean_dice"]
    assert validation["U-Net"][2].startswith(f"{mean:.3f}") and TITLES["copy"] not in validation
    assert not re.search(r"\b(nan|None)\b", model)
    facts = card_rows(model)
    assert facts["network"][1].startswith("Attention U-Net, 1\u202f235 parameters")
    assert facts["weights"][1] == f"sha256 `{'1abc' * 16}`"
    assert "cut at 0.450" in facts["output"][1] and "not for diagnosis" in model
    listed = model.split("## Limits")[1].split("##")[0].strip().splitlines()
    assert listed == [f"- {one}" for one in caveats(report) + limits(report)]


def test_healthy_slices_are_counted(report: ReportData) -> None:
    path = report.test["path"].iloc[0]
    table = report.manifest.copy()
    table.loc[table["split"] == "test", "tumour_fraction"] = 0.1
    every = limits(replace(report, manifest=table))
    assert any(one.startswith("No test slice is without tumour") for one in every)
    # One healthy slice: U-Net draws there with one of its two seeds, the other network with none.
    table.loc[table["path"] == path, "tumour_fraction"] = 0.0
    slices = report.slices.copy()
    here = slices["path"] == path
    slices.loc[here, ["tp", "fp", "fn"]] = 0
    slices.loc[here & (slices["method"] == "unet") & (slices["seed"] == 1), "fp"] = 7
    found = limits(replace(report, manifest=table, slices=slices))
    assert any(one.startswith("U-Net leaves 50.0% of the 1 test slices") for one in found)
    assert any(one.startswith("Attention U-Net leaves 100.0% of the 1 test") for one in found)


def test_unnamed_patients_and_unknown_spacing_are_limits(report: ReportData) -> None:
    def text(table: pd.DataFrame) -> str:
        return " ".join(limits(replace(report, manifest=table)))

    known = report.manifest.assign(group="somebody", spacing_mm="1×1")
    assert "patient is not named" not in text(known) and "spacing" not in text(known)
    known.loc[known.index[:3], "group"] = None
    assert "not named for 3 of 22 slices" in text(known)
    assert "not named for any slice" in text(known.assign(group=None))
    assert "No pixel spacing" in text(known.assign(spacing_mm=""))


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
    paths = [copy / split / "_annotations.coco.json" for split in SPLITS]
    for path, name in zip(paths, SPLITS, strict=True):
        recorded["licenses"] = [{"id": 1, "name": f"licence of {name[0]}", "url": "http://x.y"}]
        path.write_text(json.dumps(json.loads(path.read_text()) | recorded))
    source = recorded_source(copy)
    assert source["info year"] == ["2023"] and "info contributor" not in source
    assert source["licence name"] == ["licence of t", "licence of v"]
    _, data = cards(replace(report, data=copy), tmp_path)
    assert "| info description | a\\|b &lt;i>set&lt;/i> |" in data
    assert "matter of its licence: licence of t, licence of v." in data
    for path in paths:
        document = {k: v for k, v in json.loads(path.read_text()).items() if k not in recorded}
        path.write_text(json.dumps(document))
    _, data = cards(replace(report, data=copy), tmp_path)
    assert "record no source and no licence" in data and "licence: none is recorded." in data


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
    return replace(report, manifest=table, figures=report.figures | {"paired": paired})


def test_no_warning_without_a_reason(clean: ReportData) -> None:
    assert caveats(clean) == []


def test_a_leaking_split_is_warned_of(clean: ReportData) -> None:
    table = clean.manifest
    test, train = (table.index[table["split"] == name] for name in ("test", "train"))
    beside = table.copy()
    beside.loc[test[:3], "slice_number"] = table.loc[train[:3], "slice_number"].to_numpy() + 1
    (found,) = caveats(replace(clean, manifest=beside))
    assert "of 5 test slices 3 have a neighbouring slice in train" in found
    near = table.copy()
    near.loc[test[:2], "near_duplicate_elsewhere"] = True
    (found,) = caveats(replace(clean, manifest=near))
    assert "2 have a near duplicate" in found and "neighbouring" not in found
    torn = table.copy()
    torn.loc[[*train, *test[:4]], "split_group"] = "patient"
    (found,) = caveats(replace(clean, manifest=torn))
    assert "of 5 test slices 4 have slices of their group in train." in found


@pytest.mark.parametrize(("boxes", "words"), [(22, "All 22 labels"), (12, "12 of 22"), (11, "")])
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
@pytest.mark.parametrize("baseline", ["copy", "background"])
def test_losing_to_a_baseline_is_warned_of(clean, changed, words: str, baseline: str) -> None:
    paired = clean.figures["paired"]
    paired = paired | {f"unet-{baseline}": paired["unet-copy"] | changed}
    (found,) = caveats(replace(clean, figures=clean.figures | {"paired": paired}))
    assert found.startswith(f"U-Net {words} the {TITLES[baseline]}, which")


def test_one_seed_and_chance_are_warned_of(clean: ReportData) -> None:
    slices = clean.slices[(clean.slices["seed"] != 1) | (clean.slices["method"] == "unet")]
    (found,) = caveats(replace(clean, slices=slices))
    assert found.startswith("One seed only for Attention U-Net:")
    first, *others = clean.trainings
    loose = Training(first.run | {"deterministic": False}, first.history)
    (found,) = caveats(replace(clean, trainings=[loose, *others]))
    assert found.startswith("Deterministic mode was off")
