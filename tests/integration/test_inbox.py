"""What of a new batch joins the data set, and what does not."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import CocoFolder
from tests.support.inboxes import Batch, picture
from tests.support.retraining import masks, small_params
from tests.support.samples import SAMPLES
from tumorseg.core.errors import InputError
from tumorseg.core.params import RetrainParams, SplitParams, ValidateParams
from tumorseg.data import coco
from tumorseg.data.leakage import find_pairs
from tumorseg.data.manifest import build_manifest
from tumorseg.data.splits import grouped
from tumorseg.importers import detect, inbox, read, write
from tumorseg.importers.intake import merge


def sections(**changes):
    """The sections that `inbox.examine` takes, some keys of retrain and split changed."""
    params = small_params()
    params["split"]["method"] = "official"
    for name, value in changes.items():
        section = next(part for part in ("retrain", "split") if name in params[part])
        params[section][name] = value
    kinds = {"validate": ValidateParams, "split": SplitParams, "retrain": RetrainParams}
    return tuple(kind.model_validate(params[name]) for name, kind in kinds.items())


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set with patients: slices of p1 in train, p2 in valid, p3 in test."""
    folder = CocoFolder(tmp_path / "data")
    for patient, split in enumerate(("train", "valid", "test"), start=1):
        for number in range(3):
            seed = 10 * patient + number
            place = folder.add(split, f"s{seed}.png", [(9, 9, 20, 20)], pixels=picture(seed))
            folder.documents[split]["images"][place] |= {
                "group": f"p{patient}",
                "slice_number": number,
            }
    return folder.write()


@pytest.fixture
def batch(tmp_path) -> Batch:
    return Batch(tmp_path / "inbox" / "monday")


def examine(folder: Path, data: Path, tmp_path: Path, monkeypatch, **changes):
    """Name → (reason, side), and the verdicts."""
    monkeypatch.chdir(tmp_path)
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    _, verdicts = inbox.examine(folder, scratch, *sections(**changes), data)
    rows = verdicts.where(verdicts.notna(), None).to_dict("records")
    return {row["name"]: (row["reason"], row["side"]) for row in rows}, verdicts


def test_each_tie_to_the_test_split_keeps_a_slice_out(data, batch, tmp_path, monkeypatch) -> None:
    batch.add("good.png", picture(100))
    batch.add("same.png", picture(30))
    near = picture(31).astype(int) + np.random.default_rng(0).integers(-3, 4, (64, 80))
    batch.add("near.png", near.clip(0, 255).astype(np.uint8))
    batch.add("patient.png", picture(101), group="p3", slice_number=40)
    batch.add("beside.png", picture(102), group="p3", slice_number=3)
    batch.add("of-train.png", picture(103), group="p1", slice_number=9)
    batch.add("of-valid.png", picture(104), group="p2", slice_number=9)
    found, _ = examine(batch.write(), data, tmp_path, monkeypatch, valid_share=0.0)
    assert found == {
        "good.png": (None, "train"),
        "same.png": ("test_duplicate", None),
        "near.png": ("test_near_duplicate", None),
        "patient.png": ("test_patient", None),
        "beside.png": ("test_neighbour", None),
        "of-train.png": (None, "train"),
        "of-valid.png": (None, "valid"),
    }


def test_what_fails_a_check_or_is_there_already_stays_out(data, batch, tmp_path, monkeypatch):
    batch.add("S10.PNG", picture(110))  # a name that some file systems do not keep apart
    batch.add("copy.png", picture(11))
    batch.add("twin1.png", picture(111))
    batch.add("twin2.png", picture(111))
    batch.add("outside.png", picture(112), box=(70, 50, 60, 60))
    batch.add("all.png", picture(113), box=(0, 0, 80, 60))
    batch.add("tiny.png", picture(114, (12, 12)), box=(2, 2, 4, 4))
    batch.add("blank.png", np.full((64, 80), 7, np.uint8))
    batch.add("empty.png", picture(115), box=(10.1, 10.1, 0.0, 0.0))
    batch.add("healthy.png", picture(116), box=None)
    batch.add("broken.png", picture(117))
    batch.add("wrong-size.png", picture(118))
    batch.add("bad-label.png", picture(119))
    folder, document = batch.root / "train", batch.documents["train"]
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    document["images"][11]["width"] += 1
    document["annotations"][-1]["segmentation"] = [[1, 2, 3]]
    Image.fromarray(picture(120)).save(folder / "unlisted.png")
    found, verdicts = examine(batch.write(), data, tmp_path, monkeypatch)
    joined = {name for name, (reason, side) in found.items() if reason is None and side}
    assert joined == {"twin1.png", "healthy.png"}
    refused = {name: reason for name, (reason, _) in found.items() if reason}
    assert refused == {
        "S10.png": "name",
        "copy.png": "duplicate",
        "twin2.png": "duplicate",
        "outside.png": "finding",
        "all.png": "finding",
        "tiny.png": "finding",
        "blank.png": "finding",
        "empty.png": "finding",
        "broken.png": "unusable",
        "wrong-size.png": "unusable",
        "bad-label.png": "unusable",
        "train/unlisted.png": "unreadable",
    }
    why = verdicts.set_index("name")["why"]
    assert "out_of_frame" in why["outside.png"] and "tumour_fraction" in why["all.png"]
    assert "annotation 12" in why["bad-label.png"] or "three points" in why["bad-label.png"]


def test_a_picture_without_labels_is_seen_beside_a_namesake_with(
    batch, data, tmp_path, monkeypatch
):
    """In another folder, and where another JSON file says nothing about labels."""
    batch.add("a001.png", picture(130))
    Image.fromarray(picture(131)).save(batch.write() / "valid" / "a001.png")
    for split in ("valid", "test"):
        (batch.root / split / coco.ANNOTATIONS).unlink()
    (batch.root / "train" / "dataset_description.json").write_text('{"Name": "of BIDS"}')
    found, _ = examine(batch.root, data, tmp_path, monkeypatch)
    assert found["a001.png"][0] is None and found["valid/a001.png"] == ("unreadable", None)


def test_a_folder_that_cannot_be_imported_is_refused_whole(data, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "inbox" / "letters"
    folder.mkdir(parents=True)
    (folder / "letter.txt").write_text("Dear colleague")
    found, verdicts = examine(folder, data, tmp_path, monkeypatch)
    assert found == {".": ("folder", None)}
    assert "holds nothing that can be imported" in verdicts["why"][0]


@pytest.mark.parametrize("name", ["COCO splits, polygons", "NIfTI pairs, axial", "DICOM SEG"])
def test_masks_survive_the_way_in(name, data, tmp_path) -> None:
    sample = SAMPLES[name][1](tmp_path / "sample")
    place = tmp_path / "place"
    place.mkdir()
    source = read(tmp_path / "sample", detect(tmp_path / "sample"))
    write(source, ["train"] * len(source.records), place / "unpacked")
    before = {split: masks(data / split) for split in coco.SPLITS}
    new = masks(place / "unpacked" / "train")
    assert new.keys() == sample.truth.keys()
    sides = (["train", "valid"] * len(new))[: len(new)]
    merge(data, place, pd.DataFrame({"name": sorted(new), "side": sides}))
    after = {split: masks(place / "data" / split) for split in coco.SPLITS}
    assert all(before[split].items() <= after[split].items() for split in coco.SPLITS)
    assert {k: v for side in after.values() for k, v in side.items() if k in new} == new


def test_the_share_for_valid_goes_by_groups_and_comes_out(data, batch, tmp_path, monkeypatch):
    for patient in range(60):
        for number in range(2):
            own = {"group": f"q{patient}", "slice_number": 5 * number}
            batch.add(f"q{patient}-{number}.png", picture(1000 + 2 * patient + number), **own)
    found, _ = examine(batch.write(), data, tmp_path, monkeypatch, valid_share=0.3)
    assert {reason for reason, _ in found.values()} == {None}
    sides = {}
    for name, (_, side) in found.items():
        sides.setdefault(name.split("-")[0], set()).add(side)
    assert all(len(each) == 1 for each in sides.values())
    assert 0.15 < np.mean([each == {"valid"} for each in sides.values()]) < 0.45


def test_a_split_that_is_dealt_anew_takes_nothing_in(data, batch, tmp_path, monkeypatch) -> None:
    batch.add("good.png", picture(100))
    with pytest.raises(InputError, match=r"split\.method is guessed.*set split\.method: official"):
        examine(batch.write(), data, tmp_path, monkeypatch, method="guessed")


def test_a_split_by_patient_stays_as_it_is(tmp_path, batch, monkeypatch) -> None:
    """Twice: patients go where stage split has them, new ones to train or valid for good."""
    folder = CocoFolder(tmp_path / "data")
    for number in range(24):
        split, entry = ("train", "valid", "test")[number % 3], {"group": f"p{number % 8}"}
        place = folder.add(split, f"a{number:02d}.png", [(9, 9, 20, 20)], pixels=picture(number))
        folder.documents[split]["images"][place] |= entry
    data = folder.write()

    def splits() -> pd.DataFrame:
        validate, _, _ = sections()
        table = build_manifest(data, validate, tmp_path / "small.npy")
        pairs = find_pairs(table, tmp_path / "small.npy", validate.near_duplicate)
        return grouped(table, pairs, shortest=20, longest=60, seed=0)

    before = splits()
    side_of = before.groupby("group")["split"].first()
    home = {split: (side_of == split).idxmax() for split in coco.SPLITS}
    for turn, share in enumerate((0.0, 1.0)):
        new = Batch(tmp_path / "inbox" / f"day {turn}")
        for place, group in enumerate((*home.values(), "new", f"new {turn}", None)):
            pixels = picture(100 + 10 * turn + place)
            new.add(f"b{turn}{place}.png", pixels, **({"group": group} if group else {}))
        changes = {"method": "auto", "valid_share": share}
        found, verdicts = examine(new.write(), data, tmp_path, monkeypatch, **changes)
        drawn = ("train", "valid")[turn]
        assert list(found.values()) == [
            (None, "train"),
            (None, "valid"),
            ("test_patient", None),
            (None, "train"),
            (None, drawn),
            ("no_patient", None),
        ]
        place = tmp_path / "scratch"
        merge(data, place, verdicts[verdicts["reason"].isna()])
        shutil.rmtree(data)
        (place / "data").rename(data)
        after = splits()
        assert after.groupby("group")["split"].nunique().max() == 1
        assert dict(after.groupby("group")["split"].first()) == dict(side_of) | (
            {"new": "train", "new 0": "train"} | ({"new 1": "valid"} if turn else {})
        )
        tested = [set(table.query("split == 'test'")["sha256"]) for table in (before, after)]
        assert tested[0] == tested[1]


def test_only_batches_at_rest_are_taken(tmp_path) -> None:
    root = tmp_path / "inbox"
    assert inbox.batches(root, 0) == ([], [])
    for name in ("old", ".hidden", "growing"):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(b"1")
    (root / "link").symlink_to(root / "old")
    (root / "loose.png").write_bytes(b"1")
    time.sleep(2.1)
    (root / "growing" / "b.png").write_bytes(b"2")
    os.utime(root / "growing" / "b.png", (0, 0))  # as a copying tool keeps the source's time
    os.utime(root / "growing", (0, 0))
    assert inbox.batches(root, 2.0) == ([root / "old"], [root / "growing"])
    before = inbox.fingerprint(root / "old")
    (root / "old" / "a.png").write_bytes(b"22")
    assert inbox.fingerprint(root / "old") != before
