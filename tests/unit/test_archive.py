"""An archive's chunks: what is done, what is not done again, and what bad files and kills cost."""

import csv
import errno
import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.support.archives import PARAMS, counted, do_all, masks, opened_job
from tests.support.serving_model import disc, encode, write_model
from tumorseg.core.errors import InputError
from tumorseg.inference import archive
from tumorseg.inference.archive import Work, chunks, opened, rows_of_failed, segment_chunk
from tumorseg.inference.predict import Local, run

pytest_plugins = ["tests.support.archives"]


def test_the_masks_are_those_of_predict(work, tmp_path) -> None:
    rows = do_all(work)
    assert not run([work.archive], tmp_path / "one", Local(work.model), overwrite=False)
    assert masks(work.output) == masks(tmp_path / "one") and len(masks(work.output)) == 5
    assert (work.output / "series" / "series_seg.dcm").exists()
    assert rows["series"].slices == 4 and rows["series"].area_mm2 > 0


def test_the_table_has_a_line_a_file_and_says_what_is_wrong(work) -> None:
    do_all(work)
    with (work.output / "summary.csv").open(newline="") as file:
        lines = {line["path"]: line for line in csv.DictReader(file)}
    assert len(lines) == 7
    good, bad = lines["p0/s2.png"], lines["bad.jpg"]
    assert good["mask"] == "p0/s2_mask.png" and int(good["area_px"]) > 0
    assert good["model_digest"] == work.info.digest and good["model_version"] == "3"
    assert not good["error"] and "empty" in bad["error"] and not bad["mask"]


def test_only_what_failed_is_done_again(work, monkeypatch) -> None:
    first = do_all(work)
    seen = counted(monkeypatch)
    assert do_all(work) == first and seen == ["bad.jpg"]


@pytest.mark.parametrize("what", ["mask gone", "scan changed", "threshold", "model"])
def test_what_is_out_of_date_is_done_again(work, monkeypatch, what) -> None:
    do_all(work)
    seen = counted(monkeypatch)
    again = {"bad.jpg", "s2.png"}
    if what == "mask gone":
        (work.output / "p0" / "s2_mask.png").unlink()
    elif what == "scan changed":
        (work.archive / "p0" / "s2.png").write_bytes(encode(Image.fromarray(disc(80, 80))))
    else:
        changes = {"threshold": 0.7} if what == "threshold" else {"version": "4"}
        write_model(work.model, **changes)
        if what == "model":  # other bytes, other digest
            (work.model / "model.onnx").write_bytes(
                (work.model / "model.onnx").read_bytes().replace(b"tiny", b"TINY")
            )
            digest = hashlib.sha256((work.model / "model.onnx").read_bytes()).hexdigest()
            write = json.loads((work.model / "model.json").read_text()) | {"digest": digest}
            (work.model / "model.json").write_text(json.dumps(write))
        work = Work.of(work.archive, work.output, work.model, PARAMS)
        again = {"bad.jpg", "series", *(f"s{number}.png" for number in range(5))}
    do_all(work)
    assert set(seen) == again and len(seen) == len(again)


def test_a_mask_that_was_changed_by_hand_stays(work) -> None:
    do_all(work)
    mask = work.output / "p0" / "s2_mask.png"
    drawn = encode(Image.fromarray(disc(30, 30)))
    mask.write_bytes(drawn)
    other = Work.of(work.archive, work.output, write_model(work.model, threshold=0.7), PARAMS)
    before = work.row(opened_job(work, "p0/s2.png"))
    for _ in range(2):
        row = do_all(other)["p0/s2.png"]
        assert mask.read_bytes() == drawn and row.error is None
        assert row.threshold == before.threshold and row.warnings.count("changed since") == 1
    assert do_all(other)["p0/s0.png"].threshold == 0.7
    (work.archive / "p0" / "s2.png").write_bytes(encode(Image.fromarray(disc(80, 80))))
    assert do_all(other)["p0/s2.png"].warnings.endswith("So was the scan.")
    mask.unlink()
    row = do_all(other)["p0/s2.png"]
    assert row.threshold == 0.7 and row.warnings.count("changed since") == 0 and mask.exists()


def test_linked_folders_are_searched_through_once(work) -> None:
    elsewhere = work.archive.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.png").write_bytes(encode(Image.fromarray(disc())))
    (work.archive / "linked").symlink_to(elsewhere)
    (work.archive / "twice").symlink_to(elsewhere)
    (work.archive / "p0" / "up").symlink_to(work.archive)
    rows = do_all(work)
    assert len(rows) == 8 and rows["linked/far.png"].mask == "linked/far_mask.png"


def test_a_file_that_comes_back_has_its_own_mask(work) -> None:
    """Its mask's name was another file's meanwhile."""
    jpg, png = work.archive / "scan.jpg", work.archive / "scan.png"
    jpg.write_bytes(encode(Image.fromarray(disc()), "JPEG"))
    do_all(work)
    expected = masks(work.output)["scan_mask.png"]
    jpg.rename(work.archive.parent / "aside.jpg")
    png.write_bytes(encode(Image.fromarray(np.roll(disc(), 40, axis=0))))
    do_all(work)
    assert masks(work.output)["scan_mask.png"] != expected
    png.unlink()
    (work.archive.parent / "aside.jpg").rename(jpg)
    do_all(work)
    assert masks(work.output)["scan_mask.png"] == expected


def test_a_folder_with_other_files_is_not_written_to(work) -> None:
    work.output.mkdir()
    (work.output / "s0_mask.png").write_bytes(b"drawn by hand")
    with pytest.raises(InputError, match="did not write"), opened(work):
        pass
    with (
        pytest.raises(InputError, match="did not write"),
        opened(replace(work, output=work.archive)),
    ):
        pass


def test_two_runs_do_not_share_a_folder(work) -> None:
    do_all(work)
    with opened(work), pytest.raises(InputError, match="another run"), opened(work):
        pass
    with opened(work):  # the last run's table does not stay during the next
        assert not (work.output / "summary.csv").exists()


def test_what_cannot_be_is_one_sentence(work, tmp_path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        Work.of(tmp_path / "nowhere", work.output, work.model, PARAMS)
    with pytest.raises(InputError, match=r"model\.json"):
        Work.of(work.archive, work.output, tmp_path, PARAMS)
    (tmp_path / "file").write_text("")
    below_a_file = replace(work, output=tmp_path / "file" / "out")
    with pytest.raises(InputError, match="cannot be written"), opened(below_a_file):
        pass


def test_chunks_hold_about_as_many_slices_as_asked_for(work) -> None:
    with opened(work) as (jobs, _):
        sizes = [[len(job.files) for job in some] for some in chunks(jobs, 3)]
    assert sizes == [[1, 1, 1], [1, 1, 1], [4]] and chunks([], 3) == []


def test_what_cannot_be_read_has_a_sentence_and_the_rest_its_masks(work) -> None:
    for name in ("p0/gone.nii.gz", "p0/gone.png", "p1/gone.zip"):
        (work.archive / name).symlink_to("not-fetched")
    (work.archive / "loop.png").symlink_to("loop.png")
    rows = do_all(work)
    failed = {name for name, row in rows.items() if row.error}
    gone = {"p0/gone.nii.gz", "p0/gone.png", "p1/gone.zip"}
    assert failed == gone | {"bad.jpg", "loop.png"}
    assert len(masks(work.output)) == 5


def test_what_nobody_foresaw_costs_one_file(work, monkeypatch) -> None:
    real = archive.predict

    def predict(jobs, *args, **kwargs):
        if jobs[0].name.endswith("s2.png"):
            raise MemoryError
        return real(jobs, *args, **kwargs)

    monkeypatch.setattr(archive, "predict", predict)
    rows = do_all(work)
    assert rows["p0/s2.png"].error == "It could not be segmented (MemoryError)."
    assert {name for name, row in rows.items() if row.error} == {"bad.jpg", "p0/s2.png"}


def test_a_folder_that_cannot_be_read_stops_it_and_loses_nothing(work, monkeypatch) -> None:
    do_all(work)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("p1"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(InputError, match=r"p1: cannot be searched through \(Permission denied"):
        do_all(work)
    monkeypatch.undo()
    seen = counted(monkeypatch)
    do_all(work)
    assert seen == ["bad.jpg"]


def test_a_chunk_whose_task_failed_keeps_what_was_done(work) -> None:
    with opened(work) as (jobs, _):
        segment_chunk(work, jobs[:3], 1)
        rows = rows_of_failed(work, jobs, 1, RuntimeError("its workers died"))
    assert sum("task failed (RuntimeError)" in (row.error or "") for row in rows) == 4
    assert sum(row.mask is not None for row in rows) == 2


def test_a_chunk_goes_on_after_what_a_dead_worker_did(work, monkeypatch) -> None:
    with opened(work) as (jobs, _):
        expected = segment_chunk(work, jobs, 0)
        record = work.record / "000000.jsonl"
        lines = record.read_text().splitlines()
        record.write_text("\n".join(lines[:5]) + '\n{"path": "p0/s')  # killed while it wrote
        seen = counted(monkeypatch)
        found = segment_chunk(work, jobs, 0)
        assert [replace(row, written=None) for row in found] == [
            replace(row, written=None)
            for row in expected  # each DICOM SEG has UIDs of its own
        ]
        assert len(seen) == len(jobs) - 2  # two of them were whole


def test_a_file_that_kills_its_workers_is_given_up(work, monkeypatch) -> None:
    with opened(work) as (jobs, _):
        record = work.record / "000000.jsonl"
        name = work.name(jobs[0])
        record.write_text(json.dumps({"begun": name}) + "\n")
        seen = counted(monkeypatch)
        assert work.name(jobs[0]) == "bad.jpg" and segment_chunk(work, jobs[:1], 0)[0].error
        assert seen == ["bad.jpg"]  # once more
        record.write_text(2 * (json.dumps({"begun": name}) + "\n"))
        rows = segment_chunk(work, jobs, 0)
        assert "died" in rows[0].error and not any(row.error for row in rows[1:])
    assert do_all(work)[name].error.startswith("The file is empty")  # the next run tries again


def test_half_written_files_of_dead_workers_are_removed(work) -> None:
    with opened(work):
        (work.output / "p0").mkdir()
        (work.output / "p0" / ".77.s0_mask.png").write_bytes(b"half")
    do_all(work)
    assert not (work.output / "p0" / ".77.s0_mask.png").exists()


def test_a_model_that_was_exchanged_meanwhile_is_refused(work) -> None:
    other = replace(work, info=work.info.model_copy(update={"digest": "0" * 64}))
    with opened(other) as (jobs, _), pytest.raises(InputError, match="exchanged"):
        segment_chunk(other, jobs, 0)
