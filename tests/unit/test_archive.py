"""An archive's chunks: what is done, what is not done again, and what bad files and kills cost."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.support.archives import PARAMS, counted, do_all, masks
from tests.support.serving_model import disc, encode, write_model
from tumorseg.core.errors import InputError
from tumorseg.inference import archive
from tumorseg.inference.archive import Work, chunks, opened, rows_of_failed, segment_chunk
from tumorseg.inference.predict import Local, run

pytest_plugins = ["tests.support.archives"]


def test_masks_are_those_of_predict_and_the_table_has_a_line_per_file(work, tmp_path) -> None:
    rows = do_all(work)
    one = tmp_path / "one"
    assert not run([work.archive], one, Local(work.model).segment, overwrite=False)
    assert masks(work.output) == masks(one) and len(masks(work.output)) == 5
    assert (work.output / "series" / "series_seg.dcm").exists()
    assert rows["series"].slices == 4 and rows["series"].area_mm2 > 0
    with (work.output / "summary.csv").open(newline="") as file:
        lines = {line["path"]: line for line in csv.DictReader(file)}
    assert len(lines) == 7
    good, bad = lines["p0/s2.png"], lines["bad.jpg"]
    assert list(good) == [
        *("path", "mask", "slices", "area_px", "area_mm2", "volume_mm3", "confidence", "warnings"),
        *("model_version", "model_digest", "threshold", "error"),
    ]
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
        changes = {"threshold": 0.7} if what == "threshold" else {"gain": 5.0}
        write_model(work.model, **changes)
        work = Work.of(work.archive, work.output, work.model, PARAMS)
        again = {"bad.jpg", "series", *(f"s{number}.png" for number in range(5))}
    do_all(work)
    assert set(seen) == again and len(seen) == len(again)


def test_a_mask_that_was_changed_by_hand_stays(work) -> None:
    before = do_all(work)["p0/s2.png"]
    mask = work.output / "p0" / "s2_mask.png"
    drawn = encode(Image.fromarray(disc(30, 30)))
    mask.write_bytes(drawn)
    other = Work.of(work.archive, work.output, write_model(work.model, threshold=0.7), PARAMS)
    for _ in range(2):
        rows = do_all(other)
        row = rows["p0/s2.png"]
        assert mask.read_bytes() == drawn and row.error is None
        assert row.threshold == before.threshold and row.warnings.count("changed since") == 1
    assert rows["p0/s0.png"].threshold == 0.7
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


def test_an_output_folder_that_cannot_be_used_is_refused(work, tmp_path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        Work.of(tmp_path / "nowhere", work.output, work.model, PARAMS)
    with pytest.raises(InputError, match="did not write"), opened(replace(work, output=tmp_path)):
        pass
    do_all(work)
    with opened(work), pytest.raises(InputError, match="another run"), opened(work):
        pass
    with opened(work):  # the last run's table does not stay during the next
        assert not (work.output / "summary.csv").exists()


def test_chunks_hold_about_as_many_slices_as_asked_for(work) -> None:
    with opened(work) as (jobs, _):
        sizes = [[len(job.files) for job in some] for some in chunks(jobs, 3)]
    assert sizes == [[1, 1, 1], [1, 1, 1], [4]] and chunks([], 3) == []


def test_unreadable_files_and_unforeseen_errors_cost_one_file_each(work, monkeypatch) -> None:
    gone = {"p0/gone.nii.gz", "p0/gone.png", "p1/gone.zip", "loop.png"}
    for name in gone:
        (work.archive / name).symlink_to("loop.png")
    real = archive.predict

    def predict(jobs, *args, **kwargs):
        if jobs[0].name.endswith("s2.png"):
            raise MemoryError
        return real(jobs, *args, **kwargs)

    monkeypatch.setattr(archive, "predict", predict)
    rows = do_all(work)
    assert rows["p0/s2.png"].error == "It could not be segmented (MemoryError)."
    assert {name for name, row in rows.items() if row.error} == gone | {"bad.jpg", "p0/s2.png"}
    assert len(masks(work.output)) == 4


def test_a_folder_that_cannot_be_read_stops_it_and_loses_nothing(work, monkeypatch) -> None:
    first = do_all(work)

    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("os.scandir", scandir)
        with pytest.raises(InputError, match=r"cannot be searched through \(Permission denied"):
            do_all(work)
    assert do_all(work) == first


def test_a_chunk_whose_task_failed_keeps_what_was_done(work) -> None:
    with opened(work) as (jobs, _):
        segment_chunk(work, jobs[:3])
        rows = rows_of_failed(work, jobs, RuntimeError("its workers died"))
    assert sum("task failed (RuntimeError)" in (row.error or "") for row in rows) == 4
    assert sum(row.mask is not None for row in rows) == 2


def test_a_chunk_goes_on_after_what_a_dead_worker_did(work, monkeypatch) -> None:
    with opened(work) as (jobs, _):
        segment_chunk(work, jobs[:2])
        work.record(work.name(jobs[2])).write_text('{"path": "p0/s')  # cut off by a full disk
        work.save(replace(work.row(jobs[3]), begun=1))
        (work.output / "p0" / ".77.s0_mask.png").write_bytes(b"half")
        seen = counted(monkeypatch)
        rows = segment_chunk(work, jobs)
        assert len(seen) == len(jobs) - 2 and sum(row.mask is None for row in rows) == 1
    do_all(work)
    assert not (work.output / "p0" / ".77.s0_mask.png").exists()


def test_a_file_that_kills_its_workers_is_given_up(work, monkeypatch) -> None:
    with opened(work) as (jobs, _):
        assert work.name(jobs[0]) == "bad.jpg"
        work.save(replace(work.row(jobs[0]), begun=2))
        rows = segment_chunk(work, jobs)
        assert "died" in rows[0].error and not any(row.error for row in rows[1:])
    assert do_all(work)["bad.jpg"].error.startswith("The file is empty")  # the next run tries again


def test_a_model_that_was_exchanged_meanwhile_is_refused(work) -> None:
    other = replace(work, info=work.info.model_copy(update={"digest": "0" * 64}))
    with opened(other) as (jobs, _), pytest.raises(InputError, match="exchanged"):
        segment_chunk(other, jobs)
