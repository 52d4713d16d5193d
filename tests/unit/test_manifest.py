import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tumorseg.core.errors import InputError
from tumorseg.core.params import FINDINGS, SplitParams, ValidateParams, load_params
from tumorseg.data import coco
from tumorseg.data.audit import audit, patient_lines
from tumorseg.data.coco import decode
from tumorseg.data.expectations import (
    ELSEWHERE,
    QUALITY_FLAGS,
    check,
    report,
    stop_on_critical,
    suite,
)
from tumorseg.data.leakage import find_pairs, mark_leaks
from tumorseg.data.manifest import build_manifest, load_manifest, save_manifest
from tumorseg.data.splits import NO_PATIENTS, count_patients, grouped, patients_known, resolve
from tumorseg.importers import import_folder
from tumorseg.reporting.data_docs import settle

PARAMS = load_params(ValidateParams, REPOSITORY / "params.yaml").model_copy(update={"min_side": 32})


@pytest.fixture
def manifest_of(tmp_path):
    """Builds the manifest of a folder, its leaks marked, as validate does."""

    def build(root, params=PARAMS):
        table = build_manifest(root, params, tmp_path / "small.npy")
        pairs = find_pairs(table, tmp_path / "small.npy", params.near_duplicate)
        return mark_leaks(table, pairs, coco.SPLITS)

    return build


def lines_of(manifest, tmp_path, params=PARAMS) -> list[str]:
    return report(check(manifest, params, tmp_path / "docs"), manifest)


def test_every_finding_of_the_params_is_an_expectation_and_the_other_way_round() -> None:
    assert {e.meta["finding"] for e in suite(PARAMS)} == set(FINDINGS)
    assert set(QUALITY_FLAGS) | set(ELSEWHERE) <= set(FINDINGS)


def test_a_row_says_what_later_stages_need(coco_folder, manifest_of, tmp_path) -> None:
    coco_folder.add("train", "12_a.png", [(0, 0, 40, 32)])
    extra = {"group": "patient 7", "slice_number": 3, "spacing_mm": [0.5, 0.75]}
    coco_folder.documents["test"]["images"][0] |= extra
    coco_folder.add("train", "TCGA_CS_4941_12.png")
    pattern = {"name_pattern": r"(?P<group>[A-Z]\w+_)?(?P<number>\d+)[_.]"}
    table = manifest_of(coco_folder.write(), PARAMS.model_copy(update=pattern))
    places = table.set_index("path")[["group", "slice_number", "spacing_mm"]]
    assert tuple(places.loc["test/t.png"]) == ("patient 7", 3, "0.5×0.75")
    assert tuple(places.loc["train/TCGA_CS_4941_12.png"]) == ("TCGA_CS_4941_", 12, "")
    row = table[table["path"] == "train/12_a.png"].iloc[0]
    assert (row["width"], row["height"], row["mode"], row["annotations"]) == (80, 64, "L", 1)
    assert row["tumour_fraction"] == pytest.approx(0.25)
    assert row["box_fill"] == 1.0
    assert row["slice_number"] == 12
    assert row["categories"] == "tumour"
    assert len(row["sha256"]) == 64
    assert decode(row["mask_rle"], 64, 80)[:32, :40].all()
    assert np.load(tmp_path / "small.npy").shape == (4, 48, 48)
    save_manifest(table, tmp_path / "m.parquet")
    assert load_manifest(tmp_path / "m.parquet").equals(table)


def test_a_good_set_passes_and_writes_data_docs(phantom, manifest_of, tmp_path) -> None:
    table = manifest_of(phantom)
    assert table["problem"].isna().all()
    assert lines_of(table, tmp_path) == []
    settle(tmp_path / "docs", tmp_path / "audit.html")
    pages = list((tmp_path / "docs").rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text()
        # Nothing is fetched from anywhere when the page is opened; links to click on may stay.
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=.https?:", text)
        audit, results = (
            re.search(f'href="([^"]*)">{n}<', text)[1] for n in ("Data audit", "Results")
        )
        assert (page.parent / audit).resolve() == tmp_path / "audit.html"
        assert (page.parent / results).exists()


def test_offenders_are_named_and_stop_the_run(coco_folder, manifest_of, tmp_path) -> None:
    coco_folder.add("train", "good.png", [(3, 3, 9, 9)])
    coco_folder.add("train", "cut.png")
    coco_folder.add("train", "gone.png")
    coco_folder.add("train", "wide.png")
    coco_folder.add("train", "line.png", [{"segmentation": [[1, 1, 2, 2]]}])
    root = coco_folder.write()
    cut = root / "train" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:500])
    (root / "train" / "gone.png").unlink()
    (root / "train" / "extra.png").write_bytes((root / "train" / "good.png").read_bytes())
    document = json.loads((root / "train" / "_annotations.coco.json").read_text())
    document["images"][3]["width"] = 81
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(document))

    table = manifest_of(root)
    (line,) = [text for text in lines_of(table, tmp_path) if "can be read" in text]
    for words in (
        "train/cut.png cannot be decoded",
        "train/gone.png is listed, but there is no such file",
        "train/wide.png is 80×64, but its JSON says 81×64",
        "train/line.png annotation 1: a polygon needs at least three points",
        "train/extra.png is not listed",
    ):
        assert words in line
    assert "good.png" not in line
    with pytest.raises(InputError, match=r"train/cut\.png"):
        stop_on_critical([line])
    tolerant = PARAMS.model_copy(update={"quarantine": True})
    stop_on_critical(lines_of(table, tmp_path, tolerant))


def test_a_file_in_two_splits_and_a_huge_tumour_are_critical(
    coco_folder, manifest_of, tmp_path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80), np.uint8)
    coco_folder.add("train", "a.png", [(3, 3, 9, 9)], pixels=pixels)
    coco_folder.add("test", "b.png", [(3, 3, 9, 9)], pixels=pixels)
    coco_folder.add("train", "huge.png", [(0, 0, 80, 60)])
    lines = lines_of(manifest_of(coco_folder.write()), tmp_path)
    assert any("max_tumour_fraction: train/huge.png" in line for line in lines)
    (line,) = [text for text in lines if "no file is in two splits" in text]
    assert line.startswith("critical")
    assert "train/a.png" in line and "test/b.png" in line and "v.png" not in line


def test_what_stops_a_run_is_the_user_s_choice(coco_folder, manifest_of, tmp_path) -> None:
    coco_folder.add("train", "100_a.png", [(3, 3, 9, 9)])
    coco_folder.add("test", "101_b.png", [(3, 3, 9, 9)])
    coco_folder.add("test", "103_c.png", [(3, 3, 9, 9)])
    table = manifest_of(coco_folder.write())
    leaks = table.loc[table["neighbour_elsewhere"], "path"].tolist()
    assert set(leaks) == {"test/101_b.png", "train/100_a.png"}
    lines = lines_of(table, tmp_path)
    assert len(lines) == 2 and all(line.startswith("warning") for line in lines)
    assert "rectangles" in "".join(lines) and "test/101_b.png" in "".join(lines)
    stop_on_critical(lines)
    strict = PARAMS.model_copy(update={"stop_on": ["neighbour_across_splits"]})
    with pytest.raises(InputError, match="101_b"):
        stop_on_critical(lines_of(table, tmp_path, strict))


def test_quality_flags_are_noted(coco_folder, manifest_of, tmp_path) -> None:
    bow = [10, 10, 40, 40, 40, 10, 10, 40]
    coco_folder.add("train", "bow.png", [{"segmentation": [bow], "bbox": [10, 10, 30, 30]}])
    coco_folder.add("train", "out.png", [(70, 50, 40, 40)])
    coco_folder.add("train", "blank.png", pixels=np.full((64, 80), 9, np.uint8))
    coco_folder.add("train", "colour.png")
    coco_folder.add("train", "name.jpg")
    coco_folder.add("train", "turned.jpg")
    root = coco_folder.write()
    noise = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    Image.fromarray(noise).save(root / "train" / "colour.png")
    Image.fromarray(noise[..., 0]).save(root / "train" / "name.jpg", format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(noise[..., 1]).save(root / "train" / "turned.jpg", exif=exif)
    table = manifest_of(root)
    found = table[table["oddities"] != ""].set_index("path")["oddities"].to_dict()
    assert found == {
        "train/bow.png": "self_intersection",
        "train/out.png": "out_of_frame",
        "train/blank.png": "blank,intensity_outlier",
        "train/colour.png": "coloured",
        "train/name.jpg": "wrong_extension",
        "train/turned.jpg": "rotated",
    }
    lines = lines_of(table, tmp_path)
    assert any("self_intersection" in line and "train/bow.png" in line for line in lines)
    assert all(line.startswith("warning") for line in lines)


@pytest.mark.real_data
@pytest.mark.long
def test_facts_about_the_real_set(real_data, manifest_of, tmp_path) -> None:
    table = manifest_of(real_data)
    pairs = find_pairs(table, tmp_path / "small.npy", PARAMS.near_duplicate)
    split = load_params(SplitParams, REPOSITORY / "params.yaml")
    figures = audit(table, pairs, np.load(tmp_path / "small.npy", mmap_mode="r"), [], split)
    assert patient_lines(figures["patients"]) == [NO_PATIENTS]
    assert figures["images"] == 2146 and figures["unusable"] == {}
    assert {name: split["images"] for name, split in figures["splits"].items()} == {
        "train": 1502, "valid": 429, "test": 215,
    }  # fmt: skip
    labels = figures["labels"]
    assert labels["images_by_annotations"] == {"0": 1, "1": 2144, "2": 1}
    assert labels["rectangle_share"] == 1.0
    assert labels["wrong_if_paired_by_position"] == {"train": 375, "valid": 0, "test": 0}
    assert figures["leakage"]["test"]["with_neighbour_in_train"] == 197
    assert figures["duplicates"]["exact_across_splits"] == 0
    assert figures["splits"]["test"]["all_background_accuracy"] == pytest.approx(0.9635, abs=5e-5)
    assert figures["baselines"]["copy"]["micro_dice"] == pytest.approx(0.697, abs=0.005)


@pytest.mark.real_data
@pytest.mark.long
def test_the_real_set_by_patient(real_data, manifest_of, tmp_path) -> None:
    """The official splits and a guess divide its patients, a patient split none.

    The figures are those of the issue that brought the patients.
    """
    root = real_data.parent
    for split in coco.SPLITS:
        shutil.copytree(real_data / split, tmp_path / "set" / split)
        labels = root / "brain-tumor-outlines" / split / coco.ANNOTATIONS
        shutil.copyfile(labels, tmp_path / "set" / split / coco.ANNOTATIONS)
    summary = import_folder(tmp_path / "set", tmp_path / "data", groups=root / "patients.csv")
    assert "names 2146 of 2146 slices, and 918 that are not here" in str(summary)
    assert "429 of 429 slices of valid, 210 of 215 slices of test" in str(summary)

    table = manifest_of(tmp_path / "data")
    small = tmp_path / "small.npy"
    pairs = find_pairs(table, small, PARAMS.near_duplicate)
    split = load_params(SplitParams, REPOSITORY / "params.yaml")
    figures = audit(table, pairs, np.load(small, mmap_mode="r"), [], split)["patients"]
    lines = "\n".join(patient_lines(figures))
    print(lines)
    assert "155 patients, in the splits of the data set:" in lines
    assert "test: 215 slices of 95 patients; in train are the patients of 210 slices (91" in lines
    assert "valid: 429 slices of 127 patients; in train are the patients of 429 slices" in lines
    assert "divide 107 of 155 patients; split by them:" in lines
    assert "test: 194 slices of 33 patients; in train are the patients of 194 slices (33" in lines
    assert "valid: 416 slices of 61 patients; in train are the patients of 370 slices" in lines

    assert patients_known(table) and resolve("auto", table) == "patient"
    blocks = split.shortest_block, split.longest_block
    result = grouped(table, pairs, *blocks, split.seed)
    assert result.groupby("group")["split"].nunique().max() == 1
    assert (result["split"] != "excluded").all() and result["split_group"].nunique() == 155
    assert set(count_patients(result)["slices_with_patient_in_train"].values()) == {0}
    print(count_patients(result), result["split"].value_counts().to_dict())
    for name, share in {"train": 0.7, "valid": 0.2, "test": 0.1}.items():
        rows = result["split"] == name
        assert rows.mean() == pytest.approx(share, abs=0.02)
        by_category = (
            result["categories"][rows].value_counts() / result["categories"].value_counts()
        )
        assert (by_category.dropna() - share).abs().drop("", errors="ignore").max() < 0.05
