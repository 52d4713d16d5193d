"""The page's studies: their slices, probabilities, and masks to download at any threshold."""

import io
import secrets
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import flask
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tumorseg.imaging import seg
from tumorseg.imaging.decode import decode, is_picture
from tumorseg.imaging.preprocess import Grey, Mask, to_native
from tumorseg.imaging.render import level_of, levels, mask_png, to_png
from tumorseg.imaging.study import Refusal, Rejected, Study
from tumorseg.inference.answers import ModelNamed
from tumorseg.inference.predictor import ModelInfo
from tumorseg.inference.segment import SegmentedSlice, StudySegmenter, area_mm2
from tumorseg.serving.guard import no_file
from tumorseg.serving.operations import request_id
from tumorseg.serving.web.store import Store, find, forget, keep

T = TypeVar("T")
_TOO_LARGE = Refusal(
    413,
    "The study is too large for this page: send it to /segment/volume, or use `tumorseg predict`.",
)
_FULL = Refusal(503, "The service is busy with other volumes: send the file again in a moment.")


@dataclass(frozen=True)
class CachedSlice:
    """One slice with its result.

    Attributes:
        grey: Its values, uint8, shape (H, W).
        probability: Its probabilities as a PNG file, as from `levels`.
        histogram: Number of pixels of each of these levels, int64, shape (256,).
        area: Of the tumour at the model's own threshold, in pixels.
        confidence: Mean probability inside this tumour; None where there is none.
        warnings: A sentence each: what about the slice is unlike the training data.
    """

    grey: Grey
    probability: bytes
    histogram: NDArray[np.int64]
    area: int
    confidence: float | None
    warnings: list[str]

    @classmethod
    def of(cls, one: SegmentedSlice, threshold: float) -> "CachedSlice":
        """Compresses a result; `threshold` is the model's own, to which levels are exact."""
        found = one.found
        native = to_native(found.probability, (one.grey.shape[0], one.grey.shape[1]))
        graded = levels(native, found.mask, level_of(threshold))
        return cls(
            grey=one.grey,
            probability=to_png(graded),
            histogram=np.bincount(graded.ravel(), minlength=256),
            area=found.area_px,
            confidence=found.confidence,
            warnings=one.warnings,
        )

    def answer(self, spacing: tuple[float, float] | None) -> dict[str, Any]:
        """The result as JSON; the area in mm² by `Study.spacing`."""
        return {
            "width": self.grey.shape[1],
            "height": self.grey.shape[0],
            "area_px": self.area,
            "area_mm2": area_mm2(self.area, spacing),
            "area_fraction": self.area / self.grey.size,
            "confidence": self.confidence,
            "warnings": self.warnings,
            # The page computes the area at other thresholds; most levels are at the low end.
            "histogram": np.trim_zeros(self.histogram, "b").tolist(),
        }

    def mask(self, level: int) -> Mask:
        """The tumour, bool, shape (H, W), at a threshold's level."""
        return np.asarray(Image.open(io.BytesIO(self.probability))) >= level


@dataclass(frozen=True)
class CachedStudy:
    """A segmented study while it is viewed, compressed.

    Attributes:
        kind: As in `Study`.
        spacing: As in `Study`.
        thickness: As in `Study`.
        data: The file as it was sent, for an answer on its own grid; empty for a picture.
        slices: In the study's order.
    """

    kind: str
    spacing: tuple[float, float] | None
    thickness: float | None
    data: bytes
    slices: list[CachedSlice] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The size of everything in it, in bytes."""
        each = (s.grey.nbytes + len(s.probability) + s.histogram.nbytes for s in self.slices)
        return len(self.data) + sum(each)


def add_studies(
    app: flask.Flask, info: ModelInfo, segmenter: StudySegmenter, store: Store, volumes: int
) -> None:
    """Adds the routes below `/studies`; each session sees its own studies only.

    Args:
        app: The app.
        info: About the model.
        segmenter: Decodes and segments.
        store: Where the studies wait to be viewed.
        volumes: How many may be decoded at a time, since each may take half a gigabyte.
    """
    places = threading.BoundedSemaphore(volumes)

    @contextmanager
    def place(data: bytes) -> Iterator[None]:
        """Holds a place for a volume; one without is refused, since waiting takes a thread."""
        if is_picture(data):
            yield
        elif not places.acquire(blocking=False):
            raise Rejected(*_FULL)
        else:
            try:
                yield
            finally:
                places.release()

    @app.post("/studies")
    def send() -> dict[str, Any]:
        file = flask.request.files.get("file")
        if file is None:
            raise Rejected(400, no_file("file"))
        data, most = file.read(), store.max_bytes // 2  # more would drive out all other studies
        with place(data):
            study, slices = segmenter.open(data)
            source = b"" if study.kind == "picture" else data
            cached = CachedStudy(study.kind, study.spacing, study.thickness, source)
            for one in slices:  # a few at a time, so that only compressed results pile up
                cached.slices.append(CachedSlice.of(one, info.threshold))
                if cached.size > most:
                    raise Rejected(*_TOO_LARGE)
        name = secrets.token_urlsafe(24)
        keep(store, f"studies/{name}", cached, cached.size)
        return ModelNamed.of(info).model_dump() | {
            "id": name,
            "threshold": info.threshold,
            "request_id": request_id(),
            "kind": cached.kind,
            "spacing": cached.spacing,
            "thickness": cached.thickness,
            "slices": [one.answer(cached.spacing) for one in cached.slices],
        }

    def wanted(name: str) -> CachedStudy:
        study: CachedStudy | None = find(store, f"studies/{name}")
        if study is None:
            raise Rejected(404, "This study is not kept (any longer): send the file again.")
        return study

    def slice_of(name: str, number: int) -> CachedSlice:
        slices = wanted(name).slices
        if not 0 <= number < len(slices):
            raise Rejected(404, f"The study has the slices 0 to {len(slices) - 1}.")
        return slices[number]

    def level() -> int:
        threshold = _argument("threshold", info.threshold, float)
        if not 0 <= threshold <= 1:
            raise Rejected(400, "`threshold` is not a number from 0 to 1: correct it.")
        return level_of(threshold)

    @app.delete("/studies/<name>")
    def remove(name: str) -> tuple[str, int]:
        wanted(name)
        forget(store, f"studies/{name}")
        return "", 204

    @app.get("/studies/<name>/<int:number>/image.png")
    def image(name: str, number: int) -> flask.Response:
        return flask.Response(to_png(slice_of(name, number).grey), mimetype="image/png")

    @app.get("/studies/<name>/<int:number>/probability.png")
    def probability(name: str, number: int) -> flask.Response:
        return flask.Response(slice_of(name, number).probability, mimetype="image/png")

    @app.get("/studies/<name>/mask.png")
    def mask(name: str) -> flask.Response:
        number = _argument("slice", 0, int)
        return _download(mask_png(slice_of(name, number).mask(level())), "image/png")

    def volume(
        name: str, kinds: Container[str], write: Callable[[Study, list[Mask]], bytes]
    ) -> bytes:
        study, limit = wanted(name), level()
        if study.kind not in kinds:
            raise Rejected(404, f"This study is of the kind {study.kind}: it has no such file.")
        with place(study.data):
            return write(decode(study.data), [s.mask(limit) for s in study.slices])

    @app.get("/studies/<name>/seg.dcm")
    def seg_dcm(name: str) -> flask.Response:
        data = volume(name, {"dicom"}, lambda study, masks: seg.seg_file(study, masks, info))
        return _download(data, "application/dicom")

    @app.get("/studies/<name>/mask.nii.gz")
    def nifti(name: str) -> flask.Response:
        data = volume(name, {"dicom", "nifti"}, seg.nifti_file)
        return _download(data, "application/gzip")


def _argument(name: str, default: T, kind: Callable[[str], T]) -> T:
    text = flask.request.args.get(name)
    try:
        return default if text is None else kind(text)
    except ValueError:
        raise Rejected(400, f"`{name}` is not a number: correct it.") from None


def _download(data: bytes, mimetype: str) -> flask.Response:
    # Without a name here the browser takes the page's, or that of the address.
    return flask.Response(data, mimetype=mimetype, headers={"Content-Disposition": "attachment"})
