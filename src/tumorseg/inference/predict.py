"""Files on a disk to mask files beside them: by the packaged model itself, or by a service."""

import base64
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path
from tumorseg.imaging.render import mask_png
from tumorseg.imaging.study import Rejected, Study
from tumorseg.inference.answers import area_mm2, summed_up, volume_mm3
from tumorseg.inference.client import Client, ServiceError
from tumorseg.inference.predictor import Predictor, Segmentation
from tumorseg.inference.segment import StudySegmenter
from tumorseg.monitoring.ood import OodDetector

ENDINGS = ("_mask.png", "_seg.dcm", "_mask.nii.gz")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom", ".nii", ".nii.gz", ".zip")
_DICOM = (".dcm", ".dicom")


@dataclass(frozen=True)
class Job:
    """One thing to segment.

    Attributes:
        name: What the table calls it.
        files: One file, or the DICOM files of a folder, which are taken as one series.
        folder: Where its mask goes.
        stem: What the mask's name starts with; no other job has the same in the same folder.
    """

    name: str
    files: tuple[Path, ...]
    folder: Path
    stem: str

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
        """Where the mask goes."""
        return self.folder / f"{self.stem}{ending}"


def ending_of(data: bytes) -> str:
    """What the mask's name will end in, by the first bytes of the file."""
    if data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return "_mask.png"
    is_dicom = data[128:132] == b"DICM" or data.startswith(b"PK")
    return "_seg.dcm" if is_dicom else "_mask.nii.gz"


def plan(paths: Sequence[Path], output: Path | None = None) -> list[Job]:
    """Lists what to segment and where the masks go.

    Folders are searched through, linked ones too, each once; their masks of an earlier run are left
    out. Masks go beside their files, or under `output`, with the folders that were searched through
    as they are.

    Args:
        paths: Files and folders.
        output: Where to; beside each file if None.

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
    plain = Counter((folder, _stem(name)) for name, folder in found.values())
    jobs: list[Job] = []
    taken: set[tuple[Path, str]] = set()
    for files, (name, folder) in found.items():
        # a.jpg and a.png: their masks carry the whole names; two a.jpg: the later one a number.
        whole = name if plain[folder, _stem(name)] > 1 else _stem(name)
        stem, number = whole, 1
        while (folder, stem) in taken:
            number += 1
            stem = f"{whole}-{number}"
        taken.add((folder, stem))
        shown = str(files[0] if len(files) == 1 else files[0].parent)
        jobs.append(Job(shown, files, folder, stem))
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
        paths = [Path(parent, n) for n in sorted(names) if not n.startswith(".")]
        paths = [path for path in paths if not path.name.endswith(ENDINGS)]
        series = tuple(path for path in paths if _is_dicom(path))
        if len(series) > 1:
            yield series, real.name
            paths = [path for path in paths if path not in series]
        for path in paths:
            if path in series or path.name.lower().endswith(_SUFFIXES):
                yield (path,), path.name


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in _DICOM:
        return True
    if path.name.lower().endswith(_SUFFIXES) or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # reported when it is read, if it was named itself
        return False


def _stem(name: str) -> str:
    """The name without the endings that tell its kind."""
    lower = name.lower()
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name


@dataclass(frozen=True)
class Found:
    """The result for one file; None is what the answer does not contain.

    Attributes:
        mask: The file to write.
        ending: What its name ends in, such as `_mask.png`.
        slices: How many slices there were.
        area_px: Area of the tumour in all slices, in pixels.
        area_mm2: The same in mm².
        volume_mm3: What the tumour fills of a volume, in mm³.
        confidence: Mean probability inside the mask.
        warnings: What is unlike the training data, a sentence each.
        model: What found it, in words.
    """

    mask: bytes = field(repr=False)
    ending: str
    slices: int | None
    area_px: int | None
    area_mm2: float | None
    volume_mm3: float | None
    confidence: float | None
    warnings: list[str]
    model: str

    @property
    def size(self) -> str | None:
        """In words: the volume, or of one slice the area."""
        if self.volume_mm3 is not None:
            return f"{self.volume_mm3:.0f} mm³"
        one = self.slices == 1 and self.area_mm2 is not None
        return f"{self.area_mm2:.1f} mm²" if one else None


class Local:
    """The packaged model in this process, by the service's own code.

    Args:
        folder: Holds `model.onnx` and `model.json`.
        threshold: Probability from which a pixel is tumour; the model's own if None.
        threads: That run the network; as many as there are cores if 0.

    Attributes:
        info: What `model.json` says.

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
        found, warnings = [], []
        for one in slices:
            found.append(one.found)
            warnings.append(one.warnings)
        mask, ending = self._mask_file(study, found)
        area = sum(one.area_px for one in found)
        inside = sum(one.area_px * (one.confidence or 0.0) for one in found)
        return Found(
            mask=mask,
            ending=ending,
            slices=len(found),
            area_px=area,
            area_mm2=area_mm2(area, study.spacing),
            volume_mm3=volume_mm3(area, study) if len(found) > 1 else None,
            confidence=inside / area if area else None,
            warnings=summed_up(warnings),
            model=_model_name(self.info.version, self.info.digest),
        )

    def _mask_file(self, study: Study, found: list[Segmentation]) -> tuple[bytes, str]:
        if study.kind == "picture":
            return mask_png(found[0].mask), "_mask.png"
        # Pictures must not wait for the import of the libraries that volumes need.
        from tumorseg.imaging.seg import nifti_file, seg_file

        masks = [one.mask for one in found]
        if study.kind == "dicom":
            return seg_file(study, masks, self.info), "_seg.dcm"
        return nifti_file(study, masks), "_mask.nii.gz"


class Remote:
    """A running service.

    Args:
        client: Knows its address.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def segment(self, data: bytes) -> Found:
        """Finds the tumour in one picture or volume.

        Raises:
            ServiceError: The service refused it or did not answer.
        """
        if ending_of(data) == "_mask.png":
            one = self._client.segment(data)
            return Found(
                mask=base64.b64decode(one.mask_png),
                ending="_mask.png",
                slices=1,
                area_px=one.area_px,
                area_mm2=one.area_mm2,
                volume_mm3=None,
                confidence=one.confidence,
                warnings=one.warnings,
                model=_model_name(one.model_version, one.model_digest),
            )
        volume = self._client.segment_volume(data)
        return Found(
            mask=volume.data,
            ending="_seg.dcm" if volume.media_type == "application/dicom" else "_mask.nii.gz",
            slices=None,
            area_px=None,
            area_mm2=None,
            volume_mm3=volume.volume_mm3,
            confidence=None,
            warnings=volume.warnings,
            model=_model_name(volume.model_version, volume.model_digest),
        )


Segmenter = Local | Remote


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
        raise InputError(
            f"{tag}: is not in the bento store {os.environ.get('BENTOML_HOME', '~/bentoml')}; run "
            "`dvc repro --force package`"
        ) from None


def choose(model: Path | None, url: str | None, threshold: float | None) -> Segmenter:
    """The model in this process, or the service at `url`; the environment holds the latter's key.

    Raises:
        InputError: The model does not work, the address is none, or a threshold came with it.
    """
    if url is None:
        assert model is not None
        return Local(model, threshold)
    if threshold is not None:
        raise InputError("--threshold: a service has its own; leave out --threshold or --url")
    try:
        return Remote(Client(url, api_key=os.environ.get("TUMORSEG_API_KEY")))
    except ServiceError as error:
        raise InputError(f"--url: {error}") from None


def run(
    paths: Sequence[Path], output: Path | None, segmenter: Segmenter, *, overwrite: bool
) -> bool:
    """Segments files, prints a table, and a sentence on standard error for each failure.

    Returns:
        Whether all files were segmented.

    Raises:
        InputError: A path does not exist, or nothing was found.
    """
    done = []
    for job, found in predict(plan(paths, output), segmenter, overwrite=overwrite):
        done.append((job, found))
        if isinstance(found, str):
            print(f"{job.name}: {found.removeprefix(f'{job.name}: ')}", file=sys.stderr, flush=True)
    failed = sum(isinstance(found, str) for _, found in done)
    if failed < len(done):
        print(table(done))
    return not failed


def predict(
    jobs: Sequence[Job], segmenter: Segmenter, *, overwrite: bool = False
) -> Iterator[tuple[Job, Found | str]]:
    """Segments files and writes masks, one after the other.

    Args:
        jobs: From `plan`.
        segmenter: `Local` or `Remote`.
        overwrite: Whether a file may be replaced that is there already; an input never is.

    Yields:
        Each job with what was found, or with a sentence about why it failed.
    """
    inputs = {path.resolve() for job in jobs for path in job.files}
    for job in jobs:
        try:
            data = job.read()
            # Before the work, by the kind that it looks to be; after it, by what it was.
            _check_free(job.target(ending_of(data)), inputs, overwrite)
            found = segmenter.segment(data)
            target = job.target(found.ending)
            _check_free(target, inputs, overwrite)
            with atomic_path(target) as temporary:
                temporary.write_bytes(found.mask)
        except Rejected as error:
            yield job, error.sentence
        except OSError as error:
            yield job, f"{error.filename or job.name}: {error.strerror or error}."
        except (InputError, ServiceError) as error:
            yield job, str(error)
        else:
            yield job, found


def _check_free(target: Path, inputs: set[Path], overwrite: bool) -> None:
    if target.resolve() in inputs:
        raise InputError(f"{target}: would be overwritten, and is an input: give --output FOLDER.")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: is there already: give --output FOLDER or --overwrite.")


def table(done: Iterable[tuple[Job, Found | str]]) -> str:
    """What was found, a Markdown row a file, and what found it; failed ones are left out."""
    lines = ["| file | slices | area (px) | size | confidence | warnings |"]
    lines.append("|---|--:|--:|--:|--:|---|")
    models = set()
    for job, found in done:
        if isinstance(found, str):
            continue
        models.add(found.model)  # a service may get another one between two files
        name, said = (text.replace("|", "\\|") for text in (job.name, " ".join(found.warnings)))
        confidence = "–" if found.confidence is None else f"{found.confidence:.2f}"
        counts = [
            "–" if number is None else str(number) for number in (found.slices, found.area_px)
        ]
        cells = [name, *counts, found.size or "–", confidence, said]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"model: {model}" for model in sorted(models))])


def _model_name(version: str, digest: str) -> str:
    return f"version {version}, sha256 {digest[:12]}"
