"""`tumorseg predict`: files to mask files beside them, by the packaged model or by a service."""

import base64
import os
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

from pydicom.misc import is_dicom

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path
from tumorseg.imaging.decode import is_picture
from tumorseg.imaging.preprocess import Mask
from tumorseg.imaging.render import mask_png
from tumorseg.imaging.study import Rejected, Study
from tumorseg.inference.client import Client, ServiceError
from tumorseg.inference.predictor import Predictor
from tumorseg.inference.segment import StudySegmenter, area_mm2, summed_up, volume_mm3
from tumorseg.monitoring.ood import OodDetector

PICTURE, SEG, NIFTI = ENDINGS = ("_mask.png", "_seg.dcm", "_mask.nii.gz")
_SUFFIX = re.compile(r"\.(jpe?g|png|dcm|dicom|nii|nii\.gz|zip)$", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """One thing to segment."""

    name: str  # what the table calls it
    files: tuple[Path, ...]  # one file, or the DICOM files of a folder, taken as one series
    folder: Path  # where its mask goes
    stem: str  # what the mask's name starts with; unique in the folder

    def read(self) -> bytes:
        """The file's bytes, or a zip of the series.

        Raises:
            OSError: It cannot be read.
        """
        if len(self.files) == 1:
            return self.files[0].read_bytes()
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number, path in enumerate(self.files):
                archive.writestr(f"{number}.dcm", path.read_bytes())
        return buffer.getvalue()

    def target(self, ending: str) -> Path:
        """Where a mask with one of `ENDINGS` goes."""
        return self.folder / f"{self.stem}{ending}"


def plan(paths: Sequence[Path], output: Path | None = None) -> list[Job]:
    """Lists what to segment and where the masks go.

    Folders are searched recursively, linked ones too, each once; masks of an earlier run are left
    out. Masks go beside their files, or under `output` with the same subfolders.

    Args:
        paths: Files and folders.
        output: Folder for the masks; beside each file if None.

    Raises:
        InputError: A path does not exist, a folder cannot be read, or nothing was found.
    """
    found: dict[tuple[Path, ...], tuple[str, Path]] = {}  # files → name and folder of the mask
    for path in paths:
        if path.is_dir():
            for files, name in _search(path):
                inside = files[0].parent.relative_to(path)
                found.setdefault(files, (name, output / inside if output else files[0].parent))
        elif path.exists():
            found.setdefault((path,), (path.name, output or path.parent))
        else:
            raise InputError(f"{path}: does not exist")
    if not found:
        raise InputError("nothing to segment was found: name JPEG, PNG, DICOM, NIfTI or zip files")
    stems = Counter((folder, _SUFFIX.sub("", name)) for name, folder in found.values())
    taken: set[tuple[Path, str]] = set()
    jobs = []
    for files, (name, folder) in found.items():
        # a.jpg and a.png: their masks carry the whole names; two a.jpg: the later one a number.
        plain, number = _SUFFIX.sub("", name), 1
        stem = whole = name if stems[folder, plain] > 1 else plain
        while (folder, stem) in taken:
            number += 1
            stem = f"{whole}-{number}"
        taken.add((folder, stem))
        jobs.append(Job(str(files[0] if len(files) == 1 else files[0].parent), files, folder, stem))
    return jobs


def _search(root: Path) -> Iterator[tuple[tuple[Path, ...], str]]:
    """Files to segment below a folder, each with a name; the DICOM files of a folder as one."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be searched through ({error.strerror})")

    seen: set[Path] = set()
    for parent, folders, names in os.walk(root, onerror=fail, followlinks=True):
        if (real := Path(parent).resolve()) in seen:  # by way of a link
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (n for n in sorted(names) if not n.startswith(".") and not n.endswith(ENDINGS))
        paths = [Path(parent, name) for name in visible]
        dicom = tuple(
            path
            for path in paths
            if path.suffix.lower() in (".dcm", ".dicom")
            or (not _SUFFIX.search(path.name) and path.is_file() and is_dicom(path))
        )
        if len(dicom) > 1:
            yield dicom, real.name
            paths = sorted(set(paths) - set(dicom))
        for path in paths:
            if path in dicom or _SUFFIX.search(path.name):
                yield (path,), path.name


@dataclass(frozen=True)
class Found:
    """The result for one file; None is what the answer does not contain."""

    mask: bytes = field(repr=False)  # the file to write
    ending: str  # of its name, one of `ENDINGS`
    warnings: list[str]  # sentences about what is unlike the training data
    model: tuple[str, str]  # version and digest
    slices: int | None = None
    area_px: int | None = None  # of the tumour in all slices, in pixels
    area_mm2: float | None = None  # the same in mm²
    volume_mm3: float | None = None  # of the tumour, in mm³
    confidence: float | None = None  # mean probability inside the mask


class Local:
    """The packaged model in this process, by the service's own code.

    Args:
        folder: Holds `model.onnx` and `model.json`.
        threshold: Probability from which a pixel is tumour; the model's own if None.
        threads: That run the network; as many as there are cores if 0.

    Attributes:
        info: The content of `model.json`.

    Raises:
        InputError: The folder holds no working model.
    """

    def __init__(self, folder: Path, threshold: float | None = None, threads: int = 0) -> None:
        predictor = Predictor(folder, threads)
        self.info = predictor.info
        self._segmenter = StudySegmenter(
            partial(predictor.segment_many, threshold=threshold), OodDetector(self.info.inputs)
        )

    def segment(self, data: bytes) -> Found:
        """Finds the tumour in one picture or volume.

        Raises:
            Rejected: The file cannot be used.
        """
        study, slices = self._segmenter.open(data)
        results = list(slices)
        found = [one.found for one in results]
        area = sum(one.area_px for one in found)
        inside = sum(one.area_px * (one.confidence or 0.0) for one in found)
        mask, ending = self._mask_file(study, [one.mask for one in found])
        return Found(
            mask=mask,
            ending=ending,
            slices=len(found),
            area_px=area,
            area_mm2=area_mm2(area, study.spacing),
            volume_mm3=volume_mm3(area, study) if len(found) > 1 else None,
            confidence=inside / area if area else None,
            warnings=summed_up([one.warnings for one in results]),
            model=(self.info.version, self.info.digest),
        )

    def _mask_file(self, study: Study, masks: list[Mask]) -> tuple[bytes, str]:
        if study.kind == "picture":
            return mask_png(masks[0]), PICTURE
        # It imports highdicom and nibabel, which pictures do not need.
        from tumorseg.imaging.seg import nifti_file, seg_file

        if study.kind == "dicom":
            return seg_file(study, masks, self.info), SEG
        return nifti_file(study, masks), NIFTI


def segment_remotely(client: Client, data: bytes) -> Found:
    """Has a running service find the tumour in one picture or volume.

    Raises:
        ServiceError: The service refused it or did not answer.
    """
    if is_picture(data):
        one = client.segment(data)
        return Found(
            mask=base64.b64decode(one.mask_png),
            ending=PICTURE,
            slices=1,
            area_px=one.area_px,
            area_mm2=one.area_mm2,
            confidence=one.confidence,
            warnings=one.warnings,
            model=(one.model_version, one.model_digest),
        )
    volume = client.segment_volume(data)
    return Found(
        mask=volume.data,
        ending=SEG if volume.media_type == "application/dicom" else NIFTI,
        volume_mm3=volume.volume_mm3,
        warnings=volume.warnings,
        model=(volume.model_version, volume.model_digest),
    )


Segmenter = Callable[[bytes], Found]


def packaged_model(tag: str) -> Path:
    """The model folder inside a bento of the local store.

    Raises:
        InputError: The store has no such bento.
    """
    import bentoml
    from bentoml.exceptions import NotFound

    try:
        return Path(bentoml.get(tag).path_of("src/model"))
    except NotFound:
        raise InputError(f"{tag}: is not in BentoML's store; run `tumorseg package`") from None


def choose(model: Path | None, url: str | None, threshold: float | None) -> Segmenter:
    """The model in this process, or the service at `url` with the key in `TUMORSEG_API_KEY`.

    Raises:
        InputError: The model does not work, the address is invalid, or a threshold came with it.
    """
    if url is None:
        assert model is not None
        return Local(model, threshold).segment
    if threshold is not None:
        raise InputError("--threshold: a service has its own; leave out --threshold or --url")
    try:
        client = Client(url, api_key=os.environ.get("TUMORSEG_API_KEY"))
    except ServiceError as error:
        raise InputError(f"--url: {error}") from None
    return partial(segment_remotely, client)


def run(
    paths: Sequence[Path], output: Path | None, segmenter: Segmenter, *, overwrite: bool
) -> bool:
    """Segments files, prints a table, and a sentence on standard error for each failure.

    Returns:
        Whether all files were segmented.

    Raises:
        InputError: A path does not exist, or nothing was found.
    """
    done: list[tuple[Job, Found]] = []
    jobs = plan(paths, output)
    for job, found in predict(jobs, segmenter, overwrite=overwrite):
        if isinstance(found, Found):
            done.append((job, found))
        else:
            print(f"{job.name}: {found.removeprefix(f'{job.name}: ')}", file=sys.stderr, flush=True)
    if done:
        print(table(done))
    return len(done) == len(jobs)


def predict(
    jobs: Sequence[Job], segmenter: Segmenter, *, overwrite: bool = False
) -> Iterator[tuple[Job, Found | str]]:
    """Segments files and writes masks, one after the other.

    Args:
        jobs: From `plan`.
        segmenter: From `choose`, or `Local.segment`.
        overwrite: Whether existing files may be replaced; an input never is.

    Yields:
        Each job with its result, or with a sentence about why it failed.
    """
    inputs = {path.resolve() for job in jobs for path in job.files}
    for job in jobs:
        try:
            for target in map(job.target, ENDINGS):
                if target.resolve() in inputs:
                    raise InputError(
                        f"{target}: would be overwritten, and is an input: give --output FOLDER."
                    )
                if target.exists() and not overwrite:
                    raise InputError(
                        f"{target}: is there already: give --output FOLDER or --overwrite."
                    )
            found = segmenter(job.read())
            with atomic_path(job.target(found.ending)) as temporary:
                temporary.write_bytes(found.mask)
        except OSError as error:
            yield job, f"{error.filename or job.name}: {error.strerror or error}."
        except (InputError, Rejected, ServiceError) as error:
            yield job, str(error)
        else:
            yield job, found


def table(done: Iterable[tuple[Job, Found]]) -> str:
    """The results as a Markdown table, followed by the models that found them."""
    head = "| file | slices | area (px) | size | confidence | warnings |"
    lines = [head, "|---|--:|--:|--:|--:|---|"]
    models: dict[str, None] = {}  # in order
    for job, found in done:
        size = None if found.volume_mm3 is None else f"{found.volume_mm3:.0f} mm³"
        if size is None and found.slices == 1 and found.area_mm2 is not None:
            size = f"{found.area_mm2:.1f} mm²"
        confidence = None if found.confidence is None else f"{found.confidence:.2f}"
        cells = [job.name, found.slices, found.area_px, size, confidence, " ".join(found.warnings)]
        plain = ("–" if cell is None else str(cell).replace("|", "\\|") for cell in cells)
        lines.append(f"| {' | '.join(plain)} |")
        version, digest = found.model  # a service may get another model between two files
        models[f"model: version {version}, sha256 {digest[:12]}"] = None
    return "\n".join([*lines, "", *models])
