"""Files on a disk to mask files beside them: by the packaged model itself, or by a service."""

import base64
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path
from tumorseg.imaging.decode import Rejected, Study, decode
from tumorseg.inference.answers import area_mm2, slice_answer, summed_up
from tumorseg.inference.client import Client, ServiceError
from tumorseg.inference.predict_files import Job, ending_of, plan
from tumorseg.inference.predictor import Predictor, Segmentation
from tumorseg.monitoring.ood import Familiarity


@dataclass(frozen=True)
class Found:
    """What was found in one file; None is what the answer does not tell.

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


class Segmenter(Protocol):
    """Whatever finds tumours in the bytes of a file."""

    def segment(self, data: bytes) -> Found:
        """Finds them; raises Rejected or ServiceError, with a sentence each."""
        ...


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
        self._predictor = Predictor(folder, threads)
        self.info = self._predictor.info
        self._familiarity = Familiarity(self.info.inputs)
        self._threshold = threshold

    def segment(self, data: bytes) -> Found:
        """Finds the tumour in one picture or volume.

        Raises:
            Rejected: The file cannot be used.
        """
        study = decode(data)
        found = self._predictor.segment_many(study.slices, self._threshold)
        said = [
            self._familiarity.warnings(grey, study.colour, study.modality) for grey in study.slices
        ]
        if study.kind == "picture":
            answer = slice_answer(study.slices[0], study, found[0], said[0])
            mask, ending = base64.b64decode(answer.mask_png), "_mask.png"
        else:
            mask, ending = self._volume(study, found)
        area = sum(one.area_px for one in found)
        inside = sum(one.area_px * (one.confidence or 0.0) for one in found)
        return Found(
            mask=mask,
            ending=ending,
            slices=len(found),
            area_px=area,
            area_mm2=area_mm2(area, study.spacing),
            volume_mm3=_volume_mm3(study, area),
            confidence=inside / area if area else None,
            warnings=summed_up(said),
            model=_named(self.info.version, self.info.digest),
        )

    def _volume(self, study: Study, found: list[Segmentation]) -> tuple[bytes, str]:
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
                model=_named(one.model_version, one.model_digest),
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
            model=_named(volume.model_version, volume.model_digest),
        )


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


def _named(version: str, digest: str) -> str:
    return f"version {version}, sha256 {digest[:12]}"


def _volume_mm3(study: Study, area_px: int) -> float | None:
    area = area_mm2(area_px, study.spacing)
    if area is None or study.thickness is None or len(study.slices) == 1:
        return None
    return area * study.thickness
