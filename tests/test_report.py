import base64
import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.report_sample import METHODS, make_inputs
from tumorseg.evaluation.paired import difference
from tumorseg.evaluation.results import TITLES
from tumorseg.evaluation.strata import differences
from tumorseg.reporting import figures
from tumorseg.reporting.report import page_values, write_report
from tumorseg.reporting.report_data import ReportData, caveats, over_seeds
from tumorseg.reporting.wording import duration, fill, fixed, p_value, signed_span, whole, with_span


@pytest.fixture(scope="module")
def inputs(workplace, phantom, tmp_path_factory) -> ReportData:
    return make_inputs(workplace, phantom, tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def values(inputs) -> dict:
    return page_values(inputs)


@pytest.fixture(scope="module")
def page(values) -> str:
    return fill("report.html", values)


def test_the_page_is_one_file(values: dict, page: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tumorseg.reporting.report.page_values", lambda inputs: values)
    write_report(None, tmp_path / "reports" / "report.html")
    assert [one.name for one in (tmp_path / "reports").iterdir()] == ["report.html"]
    assert (tmp_path / "reports" / "report.html").read_text(encoding="utf-8") == page


def rows(page: str) -> list[list[str]]:
    """The cells of every table row, as text."""
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


def test_every_method_has_its_own_figures(page: str, inputs: ReportData) -> None:
    found = rows(page)
    for method in METHODS:
        test = inputs.figures["test"][method]
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
            valid = inputs.figures["valid"][method]
            assert any(
                row[0] == TITLES[method] and row[3].startswith(f"{valid['mean_dice']:.3f}")
                for row in found
            )
        else:
            assert borders[6] == "–" and overlap[2] == "–"


def test_pairs_are_printed_with_their_intervals(page: str, inputs: ReportData) -> None:
    found = {row[0]: row for row in rows(page)}
    pair = inputs.figures["paired"]["attention_unet-unet"]
    row = found["Attention U-Net minus U-Net"]
    assert row[1] == f"{pair['mean']:+.3f}"
    assert row[2] == f"{pair['low']:+.3f} to {pair['high']:+.3f}"
    by_seed = ", ".join(f"{seed}: {gap:+.3f}" for seed, gap in pair["by_seed"].items())
    assert (
        row[3:5] == [p_value(pair["p_value"]), p_value(pair["p_seeds"])]
        and row[7] == by_seed
        and by_seed.count(":") == 2
    )


def test_what_is_not_a_number_is_a_dash_and_explained(page: str) -> None:
    text = re.sub(r'"data:[^"]*"', "", page)
    assert not re.search(r"\b(nan|None|NaN|inf|<NA>)\b", text)
    row = [row for row in rows(page) if row[0] == TITLES["background"]][1]
    assert row[1] == row[5] == "–"
    assert "“–” means that a figure is not defined" in text
    assert "slices without tumour have no lesion to find" in text


def test_runs_and_parameters_are_on_the_page(page: str, inputs: ReportData) -> None:
    runs = [row for row in rows(page) if row[0] == "U-Net" and "a <b>CPU</b>" in row]
    assert [row[1] for row in runs] == ["0", "1"] and runs[1][2] == whole(1235)
    assert runs[0][7] == "4 min" and runs[0][-2:] == ["0abc0abc0abc", "–"]
    assert inputs.lineage["git_sha"] in page and inputs.lineage["lock_digest"] in page
    assert "plateau_patience: 2" in page.split("<details>")[1]


def test_too_small_strata_are_named(page: str) -> None:
    assert "having fewer than 10 slices or 6 groups: size small (" in page


def test_names_are_escaped(values: dict) -> None:
    case = values["worst"][0] | {"name": "test/<b>&.png", "categories": "<i>glioma"}
    text = fill("report.html", values | {"worst": [case], "skipped": ["category <u> (3)"]})
    assert "<h3>test/&lt;b&gt;&amp;.png</h3>" in text and 'alt="test/&lt;b&gt;&amp;.png:' in text
    assert "category &lt;i&gt;glioma;" in text and "category &lt;u&gt; (3)" in text
    assert not re.search(r"<b>&|<i>glioma|<u>", text)


def test_worst_cases_come_worst_first(inputs: ReportData) -> None:
    cases = figures.worst_cases(inputs)
    scored = over_seeds(inputs.test)
    dice = scored[scored["method"].isin(METHODS[:2])].groupby("path")["dice"].mean()
    assert [case["name"] for case in cases] == list(dice.sort_values(kind="stable").index)[:8]
    first = cases[0]
    assert [what.split(",")[0] for what, _ in first["pictures"]] == [
        "image",
        "true label",
        "U-Net",
        "Attention U-Net",
    ]
    of_slice = scored.set_index(["path", "method"])["dice"]
    assert f"Dice {of_slice[first['name'], 'unet']:.2f}" in first["pictures"][2][0]
    fact = inputs.manifest.set_index("path").loc[first["name"]]
    assert first["tumour_fraction"] == fact["tumour_fraction"]


def test_masks_of_the_winner_s_seed_are_drawn(inputs: ReportData) -> None:
    drawn = figures.worst_cases(inputs)[0]["pictures"]
    other = replace(inputs, figures=inputs.figures | {"winner_seed": 0})
    assert figures.worst_cases(other)[0]["pictures"][:2] == drawn[:2]
    assert figures.worst_cases(other)[0]["pictures"][2] != drawn[2]


def test_attention_is_shown_on_good_and_bad_slices(inputs: ReportData) -> None:
    cases = figures.attention_cases(inputs)
    rows = inputs.test[(inputs.test["method"] == "attention_unet") & (inputs.test["seed"] == 1)]
    tumour = rows[rows["tp"] + rows["fn"] > 0].set_index("path")["dice"]
    assert 2 <= len(cases) <= 4 and {case["name"] for case in cases} <= set(tumour.index)
    good, bad = ([c["dice"] for c in cases if c["good"] is g] for g in (True, False))
    assert max(good) == tumour.max() and min(bad) == tumour.min()
    captions = [what for what, _ in cases[0]["pictures"]]
    assert captions[1].startswith("gate 1, 64×64: α 0.") and len(captions) == 3
    assert captions[2].startswith("gate 2, 128×128")


def test_warnings_are_on_the_page(page: str, inputs: ReportData) -> None:
    box = page.split('class="warnings"')[1].split("</div>")[0]
    listed = [html.unescape(sentence) for sentence in re.findall("<li>([^<]*)", box)]
    assert listed and listed == caveats(inputs)


def test_no_box_without_warnings(values: dict) -> None:
    assert 'class="warnings"' not in fill("report.html", values | {"caveats": []})


def numbered(count: int) -> pd.DataFrame:
    """Two methods on so many slices; the first better by 0.1 on the second half."""
    base = np.linspace(0.2, 0.8, count)
    table = {"path": [f"{n}.png" for n in range(count)], "group": range(count)}
    gain = np.where(np.arange(count) < count / 2, 0.0, 0.1)
    return pd.concat(
        [
            pd.DataFrame(table | {"method": "attention_unet", "dice": base + gain}),
            pd.DataFrame(table | {"method": "unet", "dice": base}),
        ]
    )


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


def test_dice_is_averaged_over_seeds(inputs: ReportData) -> None:
    scored = over_seeds(inputs.test)
    assert len(scored) == 5 * len(METHODS)
    one = scored[scored["method"] == "unet"].iloc[0]
    seeds = inputs.test[(inputs.test["method"] == "unet") & (inputs.test["path"] == one["path"])]
    assert len(seeds) == 2 and one["dice"] == pytest.approx(seeds["dice"].mean())


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
