"""The page's studies: their slices, probabilities, and masks to download at any threshold."""

import io
import secrets
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import flask
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from werkzeug.exceptions import ServiceUnavailable

from tumorseg.imaging import seg
from tumorseg.imaging.decode import decode, is_picture
from tumorseg.imaging.preprocess import Grey, Mask, to_native
from tumorseg.imaging.render import level_of, levels, mask_png, to_png
from tumorseg.imaging.study import Refusal, Rejected, Study
from tumorseg.inference.answers import ModelNamed
from tumorseg.inference.predictor import ModelInfo
from tumorseg.inference.segment import SegmentedSlice, StudySegmenter, area_mm2
from tumorseg.serving.web.shield import request_id
from tumorseg.serving.web.store import Store, find, forget, keep

_GONE = "This study is not kept (any longer): send the file again."


_TOO_LARGE = Refusal(
    413,
    "The study is too large for this page: send it to /segment/volume, or use `tumorseg predict`.",
)
_FULL = "The service is busy with other volumes: send the file again in a moment."


class Turns:
    """Lets few volumes be here at a time, since each may take half a gigabyte.

    One that finds no place is sent away: waiting, it would keep a thread from everybody else.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._places = threading.BoundedSemaphore(most)

    @contextmanager
    def turn(self, data: bytes) -> Iterator[None]:
        """Holds a place for a file while it is read; pictures need none.

        Raises:
            ServiceUnavailable: If there is none.
        """
        if is_picture(data):
            yield
            return
        if not self._places.acquire(blocking=False):
            raise ServiceUnavailable(_FULL)
        try:
            yield
        finally:
            self._places.release()


@dataclass(frozen=True)
class CachedSlice:
    """One slice with its result.

    Attributes:
        grey: Its values, uint8, shape (H, W); few slices of a volume are ever looked at.
        probability: Its probabilities as a PNG file, as from `levels`.
        histogram: How many pixels each of these levels has, int64, shape (256,).
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

    def answer(self, spacing: tuple[float, float] | None) -> dict[str, Any]:
        """Says what was found, with `Study.spacing` in mm²; ready for JSON."""
        return {
            "width": self.grey.shape[1],
            "height": self.grey.shape[0],
            "area_px": self.area,
            "area_mm2": area_mm2(self.area, spacing),
            "area_fraction": self.area / self.grey.size,
            "confidence": self.confidence,
            "warnings": self.warnings,
            # From it follows the area at any other threshold; most levels are at the low end.
            "histogram": np.trim_zeros(self.histogram, "b").tolist(),
        }

    def mask(self, level: int) -> Mask:
        """The tumour, bool, shape (H, W), at a threshold's level."""
        return np.asarray(Image.open(io.BytesIO(self.probability))) >= level


@dataclass(frozen=True)
class CachedStudy:
    """A segmented study as it waits to be viewed: small, and exact at every threshold.

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
        """What it holds, in bytes."""
        each = (s.grey.nbytes + len(s.probability) + s.histogram.nbytes for s in self.slices)
        return len(self.data) + sum(each)

    def answer(self) -> dict[str, Any]:
        """Says what was found where, at the model's own threshold; ready for JSON."""
        return {
            "kind": self.kind,
            "spacing": self.spacing,
            "thickness": self.thickness,
            "slices": [s.answer(self.spacing) for s in self.slices],
        }


def cached_study(
    segmenter: StudySegmenter, threshold: float, data: bytes, most: int
) -> CachedStudy:
    """Segments a study a few slices at a time, so that only their compressed results pile up.

    Args:
        segmenter: Decodes and segments.
        threshold: The model's own.
        data: The bytes of the file.
        most: What the outcome may hold, in bytes.

    Raises:
        Rejected: If the file cannot be used, or would hold more than `most`.
    """
    study, slices = segmenter.open(data)
    cached = CachedStudy(
        study.kind, study.spacing, study.thickness, b"" if study.kind == "picture" else data
    )
    for one in slices:
        cached.slices.append(_compressed(one, threshold))
        if cached.size > most:
            raise Rejected(*_TOO_LARGE)
    return cached


def _compressed(one: SegmentedSlice, threshold: float) -> CachedSlice:
    found = one.found
    native = to_native(found.probability, (one.grey.shape[0], one.grey.shape[1]))
    graded = levels(native, found.mask, level_of(threshold))
    return CachedSlice(
        grey=one.grey,
        probability=to_png(graded),
        histogram=np.bincount(graded.ravel(), minlength=256),
        area=found.area_px,
        confidence=found.confidence,
        warnings=one.warnings,
    )


def add_studies(
    app: flask.Flask, info: ModelInfo, segmenter: StudySegmenter, store: Store, volumes: int
) -> None:
    """Adds the routes below `/studies`, each session's studies for itself alone.

    Args:
        app: The app.
        info: About the model.
        segmenter: Decodes and segments.
        store: Where the studies wait to be viewed.
        volumes: How many may be here at a time.
    """
    turns = Turns(volumes)

    @app.post("/studies")
    def send() -> dict[str, Any]:
        file = flask.request.files.get("file")
        if file is None:
            raise Rejected(400, "No file came with the request: send it as the form field `file`.")
        data, most = file.read(), store.max_bytes // 2  # more would drive out everybody else's
        with turns.turn(data):
            cached = cached_study(segmenter, info.threshold, data, most)
        name = secrets.token_urlsafe(24)
        keep(store, f"studies/{name}", cached, cached.size)
        model = ModelNamed.of(info).model_dump()
        about = {"id": name, "threshold": info.threshold, "request_id": request_id()}
        return about | model | cached.answer()

    def wanted(name: str) -> CachedStudy:
        study: CachedStudy | None = find(store, f"studies/{name}")
        if study is None:
            flask.abort(404, _GONE)
        return study

    def slice_of(name: str, number: int) -> CachedSlice:
        study = wanted(name)
        if not 0 <= number < len(study.slices):
            flask.abort(404, f"The study has the slices 0 to {len(study.slices) - 1}.")
        return study.slices[number]

    def level() -> int:
        text = flask.request.args.get("threshold")
        return level_of(info.threshold if text is None else _threshold(text))

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
        number = flask.request.args.get("slice", "0")
        if not (number.isascii() and number.isdigit()):
            raise Rejected(400, "`slice` is not a number: count the slices from 0.")
        found = slice_of(name, int(number[:9])).mask(level())
        return _download(mask_png(found), "image/png")

    def volume(
        name: str, kinds: Container[str], write: Callable[[Study, list[Mask]], bytes]
    ) -> bytes:
        study, limit = wanted(name), level()
        if study.kind not in kinds:
            flask.abort(404, f"This study is of the kind {study.kind}: it has no such file.")
        with turns.turn(study.data):
            return write(decode(study.data), [s.mask(limit) for s in study.slices])

    @app.get("/studies/<name>/seg.dcm")
    def seg_dcm(name: str) -> flask.Response:
        data = volume(name, {"dicom"}, lambda study, masks: seg.seg_file(study, masks, info))
        return _download(data, "application/dicom")

    @app.get("/studies/<name>/mask.nii.gz")
    def nifti(name: str) -> flask.Response:
        data = volume(name, {"dicom", "nifti"}, seg.nifti_file)
        return _download(data, "application/gzip")


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # also where it is not a number
        raise Rejected(400, "`threshold` is not a number from 0 to 1: correct it.")
    return value


def _download(data: bytes, mimetype: str) -> flask.Response:
    response = flask.Response(data, mimetype=mimetype)
    # Without a name here the browser takes the one that the page says, or that of the address.
    response.headers["Content-Disposition"] = "attachment"
    return response
