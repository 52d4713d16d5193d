"""segment: an archive of scans → masks and a table, dealt out over workers.

`python -m pipelines.segment FOLDER --output OUT` segments every JPEG, PNG, DICOM and NIfTI file
below FOLDER; typed again, it goes on where it was interrupted.
"""

import time
from pathlib import Path

from pipelines._fanout import outcomes, workers
from pipelines._flow import main, parser, stage
from tumorseg.core.errors import InputError
from tumorseg.core.params import SegmentParams, load_params
from tumorseg.inference.archive import (
    Work,
    chunks,
    opened,
    rows_of_failed,
    segment_chunk,
    summarise,
)
from tumorseg.inference.predict import packaged_model
from tumorseg.registry.bento import ensure_current_bento


def segment() -> None:
    """Does what the command line asks for.

    Raises:
        InputError: It cannot begin, or some files have no mask at the end.
    """
    options = parser()
    options.add_argument("folder", type=Path, help="the archive")
    options.add_argument("--output", type=Path, required=True, help="folder for masks and table")
    options.add_argument("--model", type=Path, help="a model folder, in place of the champion")
    chosen = options.parse_args()
    params = load_params(SegmentParams)
    model = chosen.model or packaged_model(ensure_current_bento(", or give --model FOLDER")["tag"])
    work = Work.of(chosen.folder, chosen.output, model, params)
    with opened(work) as (jobs, known), workers(params) as runner:
        rows = dict(known)
        todo = chunks((job for job in jobs if work.name(job) not in known), params.slices)

        # Without parameters, since Prefect keeps these, and a folder's name may be a patient's.
        @stage(name="segment", task_runner=runner)
        def archive() -> None:
            print(f"{len(jobs)} files, {len(known)} of them done already; {len(todo)} tasks")
            start = time.monotonic()
            calls = {f"part {n} of {len(todo)}": (work, part) for n, part in enumerate(todo, 1)}
            found = outcomes(segment_chunk, calls, params.retries)
            for call, outcome in zip(calls.values(), found, strict=True):
                if isinstance(outcome, InputError):
                    raise outcome
                if isinstance(outcome, Exception):
                    outcome = rows_of_failed(*call, outcome)
                rows.update((row.path, row) for row in outcome)
                print(f"{len(rows)} of {len(jobs)} files")
            seconds = time.monotonic() - start
            slices = sum(row.slices or 0 for name, row in rows.items() if name not in known)
            print(f"{slices} slices in {seconds:.1f} s, {slices / seconds:.1f} a second")

        archive()
        table = summarise(work.output, [rows[work.name(job)] for job in jobs])
    failed = sum(row.error is not None for row in rows.values())
    if failed:
        raise InputError(f"{failed} of {len(rows)} files have no mask: {table} says why")


if __name__ == "__main__":
    main(segment)
