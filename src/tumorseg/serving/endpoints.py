"""The API's addresses: bytes to slices to an answer."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
from pydantic import BaseModel
from starlette.responses import Response

from tumorseg.core.service_settings import Settings

# At the top, although pictures need none of it: threads of two first volumes that imported it at
# once would see its libraries partly imported.
from tumorseg.imaging import seg
from tumorseg.imaging.decode import decode
from tumorseg.imaging.preprocess import Grey, Mask
from tumorseg.imaging.study import Rejected, Study
from tumorseg.inference.answers import (
    BatchAnswer,
    ModelNamed,
    SegmentAnswer,
    SliceAnswer,
    SliceFailure,
)
from tumorseg.inference.predictor import Predictor
from tumorseg.inference.segment import (
    Observer,
    SegmentedSlice,
    StudySegmenter,
    probability_png,
    slice_answer,
    summed_up,
    volume_mm3,
)
from tumorseg.monitoring.ood import OodDetector
from tumorseg.serving import operations
from tumorseg.serving.batching import Grid, Slices, all_or_none
from tumorseg.serving.forms import MAX_FILES
from tumorseg.serving.guard import FAILED, no_file, refusal

T = TypeVar("T")


async def answered(work: Callable[[], Awaitable[Response]]) -> Response:
    """Turns every exception into an answer; BentoML's own would hide or wrap the sentence."""
    try:
        return await work()
    except Rejected as error:
        return refusal(error)
    except Exception as error:
        operations.log_failure(error)
        return refusal(FAILED)


class Endpoints:
    """The API behind its addresses; each method answers one request.

    Args:
        predictor: The model.
        detector: Compares slices with the training data.
        settings: The limits.
        observe: Is called for each slice that is segmented.

    Attributes:
        slices: The queue of the slices of all requests.
    """

    def __init__(
        self,
        predictor: Predictor,
        detector: OodDetector,
        settings: Settings,
        observe: Observer = operations.note_slice,
    ) -> None:
        self.slices = Slices(predictor, settings)
        self._predictor = predictor
        self._segmenter = StudySegmenter(predictor.segment_many, detector, observe)
        self._model = ModelNamed.of(predictor.info)
        # Decoded, a file may be a thousand times as large as it was sent.
        self._pictures = anyio.CapacityLimiter(2 * settings.max_batch_size)
        self._volumes = anyio.CapacityLimiter(settings.max_volumes)

    async def segment(self, file: bytes, probability: bool) -> Response:
        """Answers one picture with a `SegmentAnswer`.

        Raises:
            Rejected: If the file cannot be used, or the service is too busy.
        """

        def answer(study: Study, one: SegmentedSlice) -> Response:
            whole = SegmentAnswer(
                **dict(_slice_answer(study, one)),
                **dict(self._model),
                request_id=operations.request_id(),
                probability_png=probability_png(one.found) if probability else None,
            )
            return _json(whole, leave_out=set() if probability else {"probability_png"})

        return await self._picture(file, answer)

    async def batch(self, files: Sequence[bytes | None]) -> Response:
        """Answers several pictures with a `BatchAnswer`.

        Raises:
            Rejected: If there is no file or more than 64, or the service is too busy.
        """
        if not files:
            raise Rejected(400, no_file("files"))
        if len(files) > MAX_FILES:
            raise Rejected(400, f"There are more than {MAX_FILES} files: send some of them later.")

        async def one(file: bytes | None) -> SliceAnswer | SliceFailure:
            try:
                return await self._picture(file or b"", _slice_answer)
            except Rejected as error:
                if error.status >= 500:  # nothing is wrong with the file
                    raise
                return SliceFailure(error=error.sentence)

        results = await all_or_none(map(one, files))
        whole = BatchAnswer(
            **dict(self._model), request_id=operations.request_id(), results=results
        )
        return await self.slices.in_thread(_json, whole)

    async def volume(self, file: bytes, output: str | None) -> Response:
        """Answers a volume with a file on the same grid.

        Args:
            file: A DICOM file, a zip of a DICOM series, or NIfTI.
            output: `seg` or `nifti`; for None or an empty one, the kind that was sent.

        Raises:
            Rejected: If the file cannot be used or not be answered so, or the service is too busy.
        """

        def result(_: Study, one: SegmentedSlice) -> tuple[Mask, list[str]]:
            return one.found.mask, one.warnings

        async with self._volumes:
            study = await self.slices.in_thread(decode, file)
            kind = _output(study, output)
            await self.slices.in_thread(seg.check, study, kind)
            found = await self._each(study, result)
            masks, warnings = [mask for mask, _ in found], [some for _, some in found]
            return await self.slices.in_thread(self._file, study, kind, masks, warnings)

    async def _picture(self, file: bytes, answer: Callable[[Study, SegmentedSlice], T]) -> T:
        async with self._pictures:
            study = await self.slices.in_thread(decode, file)
            if len(study.slices) > 1:
                several = f"The file holds {len(study.slices)} slices"
                raise Rejected(415, f"{several}: send volumes to /segment/volume.")
            return (await self._each(study, answer))[0]

    async def _each(self, study: Study, answer: Callable[[Study, SegmentedSlice], T]) -> list[T]:
        def finish(grey: Grey, grid: Grid) -> T:
            found = self._predictor.finish(grid, (grey.shape[0], grey.shape[1]))
            return answer(study, self._segmenter.finish(study, grey, found))

        return await self.slices.each(study, finish)

    def _file(
        self, study: Study, output: str, masks: list[Mask], warnings: list[list[str]]
    ) -> Response:
        info = self._predictor.info
        if output == "seg":
            content, kind, ending = seg.seg_file(study, masks, info), "application/dicom", "dcm"
        else:
            content, kind, ending = seg.nifti_file(study, masks), "application/gzip", "nii.gz"
        headers = {
            "Content-Disposition": f'attachment; filename="segmentation.{ending}"',
            "X-Model-Version": info.version,
            "X-Model-Digest": info.digest,
            "X-Inputs-Known": json.dumps(self._model.inputs_known),
            "X-Warnings": json.dumps(summed_up(warnings)),
        }
        volume = volume_mm3(sum(int(mask.sum()) for mask in masks), study)
        if volume is not None:
            headers["X-Tumour-Volume-mm3"] = f"{volume:.3f}"
        return Response(content, media_type=kind, headers=headers)


def _slice_answer(study: Study, one: SegmentedSlice) -> SliceAnswer:
    return slice_answer(one.grey, study, one.found, one.warnings)


def _json(answer: BaseModel, leave_out: set[str] | None = None) -> Response:
    return Response(answer.model_dump_json(exclude=leave_out), media_type="application/json")


def _output(study: Study, asked: str | None) -> str:
    """The kind of the answer: `seg` or `nifti`."""
    if study.kind == "picture":
        raise Rejected(415, "The file is a picture, not DICOM or NIfTI: send it to /segment.")
    if asked not in (None, "", "seg", "nifti"):
        raise Rejected(400, "The form field `output` must be seg or nifti: correct it.")
    if asked == "seg" and study.kind == "nifti":
        raise Rejected(
            400,
            "A DICOM segmentation refers to the DICOM images, and the file is NIfTI: send the "
            "DICOM series, or leave out the form field `output`.",
        )
    return asked or ("seg" if study.kind == "dicom" else "nifti")
