"""Bad files, dead workers, unreadable folders: what they cost, and what stays."""

import errno
import json
import os
from dataclasses import replace

import pytest

from tests.archives import counted, do_all, masks
from tumorseg.core.errors import InputError
from tumorseg.inference import archive
from tumorseg.inference.archive import opened, segment_some
from tumorseg.inference.archive_rows import RECORD

pytest_plugins = ["tests.archives"]


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


def test_a_part_is_dealt_out_again_as_long_as_that_brings_it_further(work) -> None:
    """As where each of several files ends two workers, and the scheduler gives up at four."""
    tries = []

    def deal(calls):
        for name, (its, some, number) in calls.items():
            tries.append(name)
            done = (len(tries) - 1) * 2
            if len(tries) < 3:
                segment_some(its, some[: done + 2], number)
                yield RuntimeError("its workers died")
            else:
                yield segment_some(its, some, number)

    with opened(work) as (jobs, _):
        ((*rows,),) = archive.segment_all(work, [jobs], deal)
    assert tries == 3 * ["part 1 of 1"] and len(rows) == len(jobs) == 7
    assert [row.path for row in rows if row.error] == ["bad.jpg"]


def test_a_part_that_comes_no_further_keeps_what_was_done(work) -> None:
    def deal(calls):
        for its, some, number in calls.values():
            segment_some(its, some[:3], number)
            yield RuntimeError("its workers died")

    with opened(work) as (jobs, _):
        ((*rows,),) = archive.segment_all(work, [jobs], deal)
    assert sum("task failed (RuntimeError)" in (row.error or "") for row in rows) == 4
    assert sum(row.mask is not None for row in rows) == 2


def test_a_chunk_goes_on_after_what_a_dead_worker_did(work, monkeypatch) -> None:
    with opened(work) as (jobs, _):
        expected = segment_some(work, jobs, 0)
        record = work.output / RECORD / "000000.jsonl"
        lines = record.read_text().splitlines()
        record.write_text("\n".join(lines[:5]) + '\n{"path": "p0/s')  # killed while it wrote
        seen = counted(monkeypatch)
        found = segment_some(work, jobs, 0)
        assert [replace(row, written=None) for row in found] == [
            replace(row, written=None)
            for row in expected  # each DICOM SEG has UIDs of its own
        ]
        assert len(seen) == len(jobs) - 2  # two of them were whole


def test_a_file_that_kills_its_workers_is_given_up(work, monkeypatch) -> None:
    with opened(work) as (jobs, _):
        record = work.output / RECORD / "000000.jsonl"
        name = work.name(jobs[0])
        record.write_text(json.dumps({"begun": name}) + "\n")
        seen = counted(monkeypatch)
        assert work.name(jobs[0]) == "bad.jpg" and segment_some(work, jobs[:1], 0)[0].error
        assert seen == ["bad.jpg"]  # once more
        record.write_text(2 * (json.dumps({"begun": name}) + "\n"))
        rows = segment_some(work, jobs, 0)
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
        segment_some(other, jobs, 0)
