"""An archive of scans to masks, in chunks that any process may do, and none twice."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2

from tumorseg.core.errors import InputError
from tumorseg.core.params import SegmentParams
from tumorseg.inference.archive_rows import RECORD, Row, keep, read, take
from tumorseg.inference.predict import Local, predict
from tumorseg.inference.predict_files import Job, plan
from tumorseg.inference.predictor import ModelInfo, load_info

_ATTEMPTS = 2  # at a file during which a process died
_SLICE_BYTES = 65_536  # of a volume whose slices are not counted yet
_BY_HAND = "The mask was changed since; the figures are those of the one that was written."


@dataclass(frozen=True)
class Work:
    """What all chunks have in common; every path is absolute, on a disk that all workers share.

    Attributes:
        archive: The folder that is segmented.
        output: The folder for the masks.
        model: Holds `model.onnx` and `model.json`.
        info: What the latter said at the start.
        params: The segment section.
    """

    archive: Path
    output: Path
    model: Path
    info: ModelInfo
    params: SegmentParams

    @classmethod
    def of(cls, archive: Path, output: Path, model: Path, params: SegmentParams) -> "Work":
        """Reads the model's `model.json`.

        Raises:
            InputError: The archive is no folder, or the model is none.
        """
        if not archive.is_dir():
            raise InputError(f"{archive}: is no folder")
        return cls(archive.resolve(), output.resolve(), model.resolve(), load_info(model), params)

    def name(self, job: Job) -> str:
        """The job's path in the table."""
        return Path(job.name).relative_to(self.archive).as_posix()

    def row(self, job: Job) -> Row:
        """A row before anything was found."""
        return Row(
            path=self.name(job),
            model_version=self.info.version,
            model_digest=self.info.digest,
            threshold=self.info.threshold,
            source=_stamp(job),
        )

    def done(self, job: Job, row: Row | None) -> Row | None:
        """The row of an earlier run if the job need not be done again, else None.

        That is where its mask is there, of this very file and by this very model; or was changed
        since it was written, as by somebody who knows better.
        """
        if row is None or row.error or row.mask is None:
            return None
        mask = self.output / row.mask
        if not mask.exists():
            return None
        if row.written is not None and row.written != _digest(mask):
            kept = row.warnings.partition(_BY_HAND)[0].rstrip()
            also = "" if row.source == _stamp(job) else " So was the scan."
            return replace(row, warnings=f"{kept} {_BY_HAND}{also}".lstrip())
        wanted = (self.info.digest, self.info.threshold, _stamp(job))
        return row if (row.model_digest, row.threshold, row.source) == wanted else None


@contextmanager
def opened(work: Work) -> Iterator[tuple[list[Job], dict[str, Row]]]:
    """Takes the output folder for one run, and looks what is in the archive and what is done.

    Yields:
        All jobs, and the rows that need not be done again, by path.

    Raises:
        InputError: The output folder holds something else, cannot be written or is in use, or
            nothing was found.
    """
    jobs = plan([work.archive], work.output)
    try:
        lock, rows = take(work.output)
        named = {work.name(job): job for job in jobs}
        known = {
            name: row for name, job in named.items() if (row := work.done(job, rows.get(name)))
        }
        keep(work.output, known.values())
    except OSError as error:
        place = error.filename or work.output
        raise InputError(f"{place}: cannot be written ({error.strerror or error})") from None
    with lock:
        yield jobs, known


def chunks(jobs: Iterable[Job], slices: int) -> list[list[Job]]:
    """Divides jobs, in their order, into chunks of about so many slices.

    Args:
        jobs: What is left to do.
        slices: A chunk ends with the job with which it has as many.
    """
    made: list[list[Job]] = [[]]
    filled = 0
    for job in jobs:
        if filled >= slices:
            made.append([])
            filled = 0
        made[-1].append(job)
        filled += _weight(job)
    return made if made[0] else []


def segment_all(
    work: Work,
    parts: Sequence[Sequence[Job]],
    deal: Callable[[Mapping[str, tuple[Any, ...]]], Iterator[list[Row] | Exception]],
) -> Iterator[list[Row]]:
    """Has each chunk done by somebody, and again as long as that brings it further.

    A scheduler gives a chunk up at which a few workers have died, though each of its files may
    cost two of them.

    Args:
        work: What all chunks have in common.
        parts: The chunks.
        deal: Makes calls of `segment_some`, by name; yields what each returned or raised.

    Yields:
        The rows of each chunk.

    Raises:
        InputError: As `segment_some`.
    """
    waiting, so_far = dict(enumerate(parts, 1)), Counter[int]()
    while waiting:
        calls = {f"part {n} of {len(parts)}": (work, some, n) for n, some in waiting.items()}
        again: dict[int, Sequence[Job]] = {}
        for (number, some), found in zip(waiting.items(), deal(calls), strict=True):
            if isinstance(found, InputError):
                raise found
            if not isinstance(found, Exception):
                yield found
                continue
            done = read(_record(work, number))[1]
            if len(done) > so_far[number]:
                so_far[number], again[number] = len(done), some
                continue
            sentence = f"Its task failed ({type(found).__name__}); type the same again."
            yield [
                done.get(work.name(job)) or replace(work.row(job), error=sentence) for job in some
            ]
        waiting = again


def segment_some(work: Work, jobs: Sequence[Job], number: int) -> list[Row]:
    """Segments one chunk in this process, but for what another one did of it before it died.

    Each file stands alone, so that its mask depends on nothing but itself and the model.

    Args:
        work: What all chunks have in common.
        jobs: The chunk.
        number: Of the chunk, which no other one of this run has.

    Returns:
        A row a job.

    Raises:
        InputError: The model does not work here, or is another one than at the start.
    """
    segmenter = _loaded(work.model, work.info.digest, work.params.threads_here())
    record = _record(work, number)
    begun, done = read(record)
    rows = []
    with record.open("a", buffering=1) as file:
        file.write("\n")  # the last line may have been cut off
        for job in jobs:
            name = work.name(job)
            if (row := done.get(name)) is None:
                row = work.row(job)  # before, to notice what changes meanwhile
                if begun[name] < _ATTEMPTS:
                    file.write(json.dumps({"begun": name}) + "\n")
                    row = _segmented(work, job, row, segmenter)
                else:
                    row = replace(row, error="The worker died each time it was segmented.")
                file.write(json.dumps(asdict(row)) + "\n")
            rows.append(row)
    return rows


def _segmented(work: Work, job: Job, row: Row, segmenter: Local) -> Row:
    try:
        ((_, found),) = predict([job], segmenter, overwrite=True)
    except InputError:
        raise
    except Exception as error:  # whatever it is, the other files are not to suffer for it
        return replace(row, error=f"It could not be segmented ({type(error).__name__}).")
    if isinstance(found, str):
        return replace(row, error=found)
    mask = job.target(found.ending)
    return replace(
        row,
        mask=mask.relative_to(work.output).as_posix(),
        written=_digest(mask),
        slices=found.slices,
        area_px=found.area_px,
        area_mm2=found.area_mm2,
        volume_mm3=found.volume_mm3,
        confidence=found.confidence,
        warnings=" ".join(found.warnings),
    )


@lru_cache(maxsize=2)
def _loaded(model: Path, digest: str, threads: int) -> Local:
    """The model, once a process."""
    cv2.setNumThreads(threads)
    segmenter = Local(model, threads=threads)
    if segmenter.info.digest != digest:
        raise InputError(f"{model}: was exchanged meanwhile; type the same again")
    return segmenter


def _weight(job: Job) -> int:
    """Slices, as far as the names tell."""
    if len(job.files) > 1:
        return len(job.files)
    if job.files[0].name.lower().endswith((".nii", ".nii.gz", ".zip")):
        with suppress(OSError):  # reading it will say why
            return 1 + job.files[0].stat().st_size // _SLICE_BYTES
    return 1


def _record(work: Work, number: int) -> Path:
    """What has been done of a chunk of this run."""
    return work.output / RECORD / f"{number:06}.jsonl"


def _digest(mask: Path) -> str:
    return sha256(mask.read_bytes()).hexdigest()


def _stamp(job: Job) -> str:
    try:
        found = [path.stat() for path in job.files]
    except OSError:  # reading it will say why
        return "gone"
    changed = max(one.st_mtime_ns for one in found)
    return f"{len(found)} {sum(one.st_size for one in found)} {changed}"
