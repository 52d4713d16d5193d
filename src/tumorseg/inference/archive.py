"""An archive of scans to masks and a table, in chunks that any process may do, and none twice.

Below the output folder, `.segment/` holds JSON lines: one for each file that was begun and one for
each that was done, written by the process that did it, so that a run goes on after any kill.
`summary.csv` is made of these lines at the end.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import cv2
from filelock import FileLock, Timeout

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path
from tumorseg.core.params import SegmentParams
from tumorseg.inference.predict import ENDINGS, Job, Local, plan, predict
from tumorseg.inference.predictor import ModelInfo, load_info

SUMMARY = "summary.csv"
RECORD = ".segment"
_DONE = "done.jsonl"  # the rows of earlier runs that still count
_ATTEMPTS = 2  # at a file during which a process died
_SLICE_BYTES = 65_536  # of a volume whose slices are not counted yet
_EDITED = "The mask was changed since; the figures are those of the one that was written."
_UNFINISHED = re.compile(r"\.\d+\..+(" + "|".join(map(re.escape, ENDINGS)) + ")")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result for one file; a line of summary.csv except for the last two fields.

    Attributes:
        path: The file, or the folder of a DICOM series, relative to the archive.
        mask: The mask's file, relative to the output folder; None where there is none.
        slices: How many slices it holds.
        area_px: Area of the tumour in all slices, in pixels.
        area_mm2: The same in mm², where the spacing is known.
        volume_mm3: Volume of the tumour in mm³, where it is known.
        confidence: Mean probability inside the mask; None where it is empty.
        warnings: What is unlike the training data, sentences.
        model_version: Of the registry.
        model_digest: SHA-256 of the model file.
        threshold: Probability from which a pixel is tumour.
        error: Why there is no mask, a sentence.
        source: Number of files, their bytes and the last change, to notice another content.
        written: SHA-256 of the mask as it was written; None where there is none.
    """

    path: str
    mask: str | None = None
    slices: int | None = None
    area_px: int | None = None
    area_mm2: float | None = None
    volume_mm3: float | None = None
    confidence: float | None = None
    warnings: str = ""
    model_version: str
    model_digest: str
    threshold: float
    error: str | None = None
    source: str
    written: str | None = None


@dataclass(frozen=True)
class Work:
    """What all chunks have in common; every path is absolute, on a disk that all workers share.

    Attributes:
        archive: The folder that is segmented.
        output: The folder for the masks.
        model: Holds `model.onnx` and `model.json`.
        info: The content of `model.json` at the start.
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

    @property
    def record(self) -> Path:
        """The folder of the JSON lines."""
        return self.output / RECORD

    def name(self, job: Job) -> str:
        """The job's path in the table."""
        return Path(job.name).relative_to(self.archive).as_posix()

    def row(self, job: Job) -> Row:
        """The row of a job without a result."""
        return Row(
            path=self.name(job),
            model_version=self.info.version,
            model_digest=self.info.digest,
            threshold=self.info.threshold,
            source=_source(job),
        )

    def done(self, job: Job, row: Row | None) -> Row | None:
        """The row of an earlier run if the job need not be done again, else None.

        It need not where its mask exists, of the same file and by the same model and threshold, or
        was edited after it was written.
        """
        if row is None or row.error or row.mask is None:
            return None
        mask = self.output / row.mask
        if not mask.exists():
            return None
        if row.written is not None and row.written != _digest(mask):
            before = row.warnings.partition(_EDITED)[0].rstrip()
            also = "" if row.source == _source(job) else " So was the scan."
            return replace(row, warnings=f"{before} {_EDITED}{also}".lstrip())
        wanted = (self.info.digest, self.info.threshold, _source(job))
        return row if (row.model_digest, row.threshold, row.source) == wanted else None


@contextmanager
def opened(work: Work) -> Iterator[tuple[list[Job], dict[str, Row]]]:
    """Locks the output folder for one run, and lists what is in the archive and what is done.

    Yields:
        All jobs, and the rows that need not be done again, by path.

    Raises:
        InputError: The output folder holds something else, cannot be written or is in use, or
            nothing was found.
    """
    jobs = plan([work.archive], work.output)
    output, lock = work.output, FileLock(work.record / "lock", timeout=0)
    try:
        if not work.record.is_dir() and output.exists() and any(output.iterdir()):
            raise InputError(
                f"{output}: holds files that this command did not write; name a new folder"
            )
        work.record.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        (output / SUMMARY).unlink(missing_ok=True)
        known = _known(work, jobs)
    except Timeout:
        raise InputError(f"{output}: another run writes there; wait for its end") from None
    except OSError as error:
        lock.release()
        place = error.filename or output
        raise InputError(f"{place}: cannot be written ({error.strerror or error})") from None
    try:
        yield jobs, known
    finally:
        lock.release()


def _known(work: Work, jobs: Iterable[Job]) -> dict[str, Row]:
    """Gathers the rows that still count in one file and removes the others.

    A row of a file that is no longer there would call it done when it comes back, though another
    file may have taken its mask's name meanwhile.
    """
    parts = sorted(work.record.glob("[0-9]*.jsonl"))
    rows: dict[str, Row] = {}
    for part in (work.record / _DONE, *parts):
        rows |= _read(part)[1]
    found = {work.name(job): work.done(job, rows.get(work.name(job))) for job in jobs}
    known = {name: row for name, row in found.items() if row is not None}
    with atomic_path(work.record / _DONE) as temporary:
        temporary.write_text("".join(json.dumps(asdict(row)) + "\n" for row in known.values()))
    for part in parts:
        part.unlink()
    return known


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


def segment_chunk(work: Work, jobs: Sequence[Job], number: int) -> list[Row]:
    """Segments one chunk in this process, except for what another one did of it before it died.

    Each file stands alone, so that its mask depends on nothing but itself and the model.

    Args:
        work: What all chunks have in common.
        jobs: The chunk.
        number: Of the chunk, unique in this run.

    Returns:
        A row a job.

    Raises:
        InputError: The model does not work here, or is another one than at the start.
    """
    segmenter = _loaded(work.model, work.info.digest, work.params.threads_here())
    record = _record(work, number)
    begun, done = _read(record)
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


def rows_of_failed(work: Work, jobs: Sequence[Job], number: int, error: Exception) -> list[Row]:
    """The rows of a chunk whose task failed: what was done before, and an error for the rest."""
    done = _read(_record(work, number))[1]
    sentence = f"Its task failed ({type(error).__name__}); type the same again."
    return [done.get(work.name(job)) or replace(work.row(job), error=sentence) for job in jobs]


def summarise(output: Path, rows: Iterable[Row]) -> Path:
    """Writes summary.csv, and removes what killed processes left half-written."""
    for parent, _, names in os.walk(output):
        for name in filter(_UNFINISHED.fullmatch, names):
            Path(parent, name).unlink(missing_ok=True)
    columns = [name for name in Row.__annotations__ if name not in ("source", "written")]
    path = output / SUMMARY
    with (
        atomic_path(path) as temporary,
        # Names of files need not be text.
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return path


def _segmented(work: Work, job: Job, row: Row, segmenter: Local) -> Row:
    try:
        ((_, found),) = predict([job], segmenter, overwrite=True)
    except InputError:
        raise
    except Exception as error:  # whatever it is, it must not cost the other files
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
    """Slices, estimated from the names and sizes of the files."""
    if len(job.files) > 1:
        return len(job.files)
    if job.files[0].name.lower().endswith((".nii", ".nii.gz", ".zip")):
        with suppress(OSError):  # reading it will report why
            return 1 + job.files[0].stat().st_size // _SLICE_BYTES
    return 1


def _record(work: Work, number: int) -> Path:
    """The JSON lines of a chunk of this run."""
    return work.record / f"{number:06}.jsonl"


def _read(record: Path) -> tuple[Counter[str], dict[str, Row]]:
    """How often each file was begun, and the rows of those that were done, by path."""
    begun, done = Counter[str](), dict[str, Row]()
    for line in record.read_text().splitlines() if record.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:  # empty, or cut off when its writer was killed
            continue
        if "begun" in values:
            begun[values["begun"]] += 1
        else:
            done[values["path"]] = Row(**values)
    return begun, done


def _digest(mask: Path) -> str:
    return sha256(mask.read_bytes()).hexdigest()


def _source(job: Job) -> str:
    try:
        found = [path.stat() for path in job.files]
    except OSError:  # reading it will report why
        return "gone"
    changed = max(one.st_mtime_ns for one in found)
    return f"{len(found)} {sum(one.st_size for one in found)} {changed}"
