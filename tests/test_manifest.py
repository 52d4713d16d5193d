import json

import numpy as np
import pytest

from tumorseg.coco import decode
from tumorseg.errors import InputError
from tumorseg.expectations import check, report, stop_on_critical
from tumorseg.manifest import build_manifest, load_manifest, save_manifest
from tumorseg.params import ValidateParams

PARAMS = ValidateParams(min_side=32, max_side=4096, max_tumour_fraction=0.5)


def lines_of(manifest, tmp_path) -> list[str]:
    return report(check(manifest, PARAMS, tmp_path / "docs"), manifest)


def test_a_row_says_what_later_stages_need(coco_folder, tmp_path) -> None:
    coco_folder.add("train", "12_a.png", [(0, 0, 40, 32)])
    table = build_manifest(coco_folder.write())
    row = table[table["path"] == "train/12_a.png"].iloc[0]
    assert (row["width"], row["height"], row["mode"], row["annotations"]) == (80, 64, "L", 1)
    assert row["tumour_fraction"] == pytest.approx(0.25)
    assert row["box_fill"] == 1.0
    assert row["slice_number"] == 12
    assert len(row["sha256"]) == 64
    assert decode(row["mask_rle"], 64, 80)[:32, :40].all()
    save_manifest(table, tmp_path / "m.parquet")
    assert load_manifest(tmp_path / "m.parquet").equals(table)


def test_a_good_set_passes_and_writes_data_docs(phantom, tmp_path) -> None:
    table = build_manifest(phantom)
    assert table["problem"].isna().all()
    assert lines_of(table, tmp_path) == []
    assert "manifest" in (tmp_path / "docs" / "index.html").read_text()


def test_offenders_are_named_and_stop_the_run(coco_folder, tmp_path) -> None:
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

    table = build_manifest(root)
    (line,) = [text for text in lines_of(table, tmp_path) if "can be read" in text]
    for words in (
        "train/cut.png cannot be read",
        "train/gone.png cannot be read",
        "train/wide.png is 80×64, but its JSON says 81×64",
        "train/line.png annotation 1: a polygon needs at least three points",
        "train/extra.png is not listed",
    ):
        assert words in line
    assert "good.png" not in line
    with pytest.raises(InputError, match=r"train/cut\.png"):
        stop_on_critical([line])


def test_a_file_in_two_splits_is_critical(coco_folder, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80), np.uint8)
    coco_folder.add("train", "a.png", [(3, 3, 9, 9)], pixels=pixels)
    coco_folder.add("test", "b.png", [(3, 3, 9, 9)], pixels=pixels)
    lines = lines_of(build_manifest(coco_folder.write()), tmp_path)
    (line,) = [text for text in lines if "no file is in two splits" in text]
    assert line.startswith("critical")
    assert "train/a.png" in line and "test/b.png" in line and "v.png" not in line


def test_neighbours_and_rectangles_are_said_but_do_not_stop(coco_folder, tmp_path) -> None:
    coco_folder.add("train", "100_a.png", [(3, 3, 9, 9)])
    coco_folder.add("test", "101_b.png", [(3, 3, 9, 9)])
    coco_folder.add("test", "103_c.png", [(3, 3, 9, 9)])
    table = build_manifest(coco_folder.write())
    leaks = table.loc[table["neighbour_in_other_split"], "path"].tolist()
    assert set(leaks) == {"test/101_b.png", "train/100_a.png"}
    lines = lines_of(table, tmp_path)
    assert len(lines) == 2 and all(line.startswith("warning") for line in lines)
    assert "rectangles" in "".join(lines) and "test/101_b.png" in "".join(lines)
    stop_on_critical(lines)


def test_a_huge_tumour_is_critical(coco_folder, tmp_path) -> None:
    coco_folder.add("train", "a.png", [(0, 0, 80, 60)])
    lines = lines_of(build_manifest(coco_folder.write()), tmp_path)
    assert any("max_tumour_fraction: train/a.png" in line for line in lines)


def test_a_missing_split_is_named(tmp_path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no folder valid, test"):
        build_manifest(tmp_path)


@pytest.mark.real_data
def test_facts_about_the_real_set(real_data) -> None:
    table = build_manifest(real_data)
    assert table["split"].value_counts().to_dict() == {"train": 1502, "valid": 429, "test": 215}
    assert table["annotations"].value_counts().to_dict() == {1: 2144, 0: 1, 2: 1}
    assert (table["box_fill"].dropna() >= 0.99).all()
    assert table["problem"].isna().all()
    assert not table["duplicate_in_other_split"].any()
    test = table[table["split"] == "test"]
    assert 1 - test["tumour_fraction"].mean() == pytest.approx(0.9635, abs=5e-5)
