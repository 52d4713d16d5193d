"""An archive of scans to masks and a table, in chunks that any process may do.

Below the output folder, `.segment/` holds a JSON file for each scan with its row: how often it was
begun, and later its result. By these a run continues after any kill.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import cv2
from filelock import FileLock, Timeout

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path, write_text
from tumorseg.core.params import SegmentParams
from tumorseg.inference.predict import ENDINGS, Job, Local, plan, predict
from tumorseg.inference.predictor import ModelInfo, load_info

SUMMARY = "summary.csv"
RECORD = ".segment"
_INTERNAL = {"begun", "source", "written"}  # fields of a row that are no columns of the table
_MEASURES = ("slices", "area_px", "area_mm2", "volume_mm3", "confidence")
_ATTEMPTS = 2  # at a file during which a process died
_SLICE_BYTES = 65_536  # of a volume whose slices are not counted yet
_EDITED = "The mask was changed since; the figures are those of the one that was written."


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result for one file; a line of summary.csv except for the last three fields."""

    path: str  # the file, or the folder of a DICOM series, relative to the archive
    mask: str | None = None  # relative to the output folder
    slices: int | None = None
    area_px: int | None = None  # of the tumour in all slices, in pixels
    area_mm2: float | None = None  # the same in mm², if the spacing is known
    volume_mm3: float | None = None  # of the tumour in mm³, if it is known
    confidence: float | None = None  # mean probability inside the mask, if it is not empty
    warnings: str = ""  # sentences about what is unlike the training data
    model_version: str  # in the registry
    model_digest: str  # SHA-256 of the model file
    threshold: float  # probability from which a pixel is tumour
    error: str | None = None  # a sentence about why there is no mask
    begun: int = 0  # how often its segmentation was begun in this run
    source: str  # number of files, their bytes and last change, to notice other content
    written: str | None = None  # SHA-256 of the mask as it was written


@dataclass(frozen=True)
class Work:
    """What all chunks share; every path is absolute, on a disk that all workers can reach."""

    archive: Path  # the folder that is segmented
    output: Path  # the folder for the masks
    model: Path  # holds `model.onnx` and `model.json`
    info: ModelInfo  # the content of `model.json` at the start
    params: SegmentParams

    @classmethod
    def of(cls, archive: Path, output: Path, model: Path, params: SegmentParams) -> "Work":
        """Reads the model's `model.json`.

        Raises:
            InputError: The archive is not a folder, or the model cannot be read.
        """
        if not archive.is_dir():
            raise InputError(f"{archive}: is no folder")
        return cls(archive.resolve(), output.resolve(), model.resolve(), load_info(model), params)

    def name(self, job: Job) -> str:
        """The job's path in the table."""
        return Path(job.name).relative_to(self.archive).as_posix()

    def record(self, name: str) -> Path:
        """The JSON file of a job's row, by the job's path in the table."""
        return self.output / RECORD / f"{sha256(os.fsencode(name)).hexdigest()}.json"

    def row(self, job: Job) -> Row:
        """The recorded row of a job, or a new one."""
        try:
            return Row(**json.loads(self.record(self.name(job)).read_bytes()))
        except (OSError, ValueError, TypeError):
            return Row(
                path=self.name(job),
                model_version=self.info.version,
                model_digest=self.info.digest,
                threshold=self.info.threshold,
                source=_source(job),
            )

    def save(self, row: Row) -> Row:
        """Records a row and returns it."""
        write_text(self.record(row.path), json.dumps(asdict(row)))
        return row

    def done(self, job: Job) -> Row | None:
        """The recorded row if its mask is up to date, or was edited since it was written."""
        row = self.row(job)
        if row.mask is None or not (mask := self.output / row.mask).exists():
            return None
        if row.written != _digest(mask):
            also = "" if row.source == _source(job) else " So was the scan."
            return replace(row, warnings=f"{row.warnings} {_EDITED}{also}".lstrip())
        wanted = (self.info.digest, self.info.threshold, _source(job))
        return row if (row.model_digest, row.threshold, row.source) == wanted else None


@contextmanager
def opened(work: Work) -> Iterator[tuple[list[Job], dict[str, Row]]]:
    """Locks the output folder for one run, and lists what is in the archive and what is done.

    Yields:
        All jobs, and the rows of those that need not be done again, by path.

    Raises:
        InputError: The output folder holds other files or is in use, or nothing was found.
    """
    jobs = plan([work.archive], work.output)
    output, record = work.output, work.output / RECORD
    try:
        if not record.is_dir() and output.exists() and any(output.iterdir()):
            raise InputError(
                f"{output}: holds files that this command did not write; name a new folder"
            )
        record.mkdir(parents=True, exist_ok=True)
        held = FileLock(record / "lock", timeout=0).acquire()
    except Timeout:
        raise InputError(f"{output}: another run writes there; wait for its end") from None
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror})") from None
    with held:
        (output / SUMMARY).unlink(missing_ok=True)
        known = {row.path: row for job in jobs if (row := work.done(job)) is not None}
        # A row of a file that comes back later must not count: its mask's name may be another's.
        for path in set(record.glob("*.json")) - set(map(work.record, known)):
            path.unlink()
        yield jobs, known


def chunks(jobs: Iterable[Job], slices: int) -> list[list[Job]]:
    """Divides jobs, in their order, into chunks of about so many slices.

    Args:
        jobs: What is left to do.
        slices: A chunk ends with the job with which it has as many.
    """
    made: list[list[Job]] = []
    filled = slices
    for job in jobs:
        if filled >= slices:
            made.append([])
            filled = 0
        made[-1].append(job)
        filled += _weight(job)
    return made


def segment_chunk(work: Work, jobs: Sequence[Job]) -> list[Row]:
    """Segments one chunk in this process, except for what another one did of it before it died.

    Each file is segmented by itself, so that its mask depends on nothing but itself and the model.

    Args:
        work: What all chunks have in common.
        jobs: The chunk.

    Returns:
        A row per job.

    Raises:
        InputError: The model does not work here, or is another one than at the start.
    """
    segmenter = _loaded(work.model, work.info.digest, work.params.threads_here())
    rows = []
    for job in jobs:
        row = work.row(job)
        if row.mask is None and row.error is None:
            if row.begun < _ATTEMPTS:
                row = work.save(replace(row, begun=row.begun + 1))
                row = _segmented(work, job, row, segmenter)
            else:
                row = replace(row, error="The worker died each time it was segmented.")
            work.save(row)
        rows.append(row)
    return rows


def rows_of_failed(work: Work, jobs: Sequence[Job], error: Exception) -> list[Row]:
    """The rows of a chunk whose task failed: what was done before, and an error for the rest."""
    sentence = f"Its task failed ({type(error).__name__}); type the same again."
    rows = map(work.row, jobs)
    return [row if row.mask or row.error else replace(row, error=sentence) for row in rows]


def summarise(output: Path, rows: Iterable[Row]) -> Path:
    """Writes summary.csv, and removes temporary files of killed processes."""
    for ending in ENDINGS:
        for path in output.rglob(f".[0-9]*.*{ending}"):
            path.unlink(missing_ok=True)
    path = output / SUMMARY
    with (
        atomic_path(path) as temporary,
        # Names of files need not be text.
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        columns = [name for name in Row.__annotations__ if name not in _INTERNAL]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return path


def _segmented(work: Work, job: Job, row: Row, segmenter: Local) -> Row:
    try:
        ((_, found),) = predict([job], segmenter.segment, overwrite=True)
    except InputError:
        raise
    except Exception as error:  # any other error must not stop the other files
        return replace(row, error=f"It could not be segmented ({type(error).__name__}).")
    if isinstance(found, str):
        return replace(row, error=found)
    mask = job.target(found.ending)
    return replace(
        row,
        **{name: getattr(found, name) for name in _MEASURES},
        mask=mask.relative_to(work.output).as_posix(),
        written=_digest(mask),
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
    first = job.files[0]
    if first.name.lower().endswith((".nii", ".nii.gz", ".zip")) and first.exists():
        return 1 + first.stat().st_size // _SLICE_BYTES
    return len(job.files)


def _digest(mask: Path) -> str:
    return sha256(mask.read_bytes()).hexdigest()


def _source(job: Job) -> str:
    try:
        found = [path.stat() for path in job.files]
    except OSError:  # reading it will report why
        return "gone"
    changed = max(one.st_mtime_ns for one in found)
    return f"{len(found)} {sum(one.st_size for one in found)} {changed}"
