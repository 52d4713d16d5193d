"""What our own page asks for: a study's slices, their probabilities, and masks to download."""

import secrets
from collections.abc import Callable, Container
from typing import Any

import flask

from tumorseg.imaging import seg
from tumorseg.imaging.decode import Rejected, Study, decode
from tumorseg.imaging.preprocess import Mask
from tumorseg.imaging.render import level_of, mask_png, to_png
from tumorseg.inference.answers import ModelNamed
from tumorseg.inference.predictor import ModelInfo
from tumorseg.monitoring.ood import Familiarity
from tumorseg.serving.web import sessions
from tumorseg.serving.web.kept import Kept, KeptSlice, Note, Segment, Turns, segmented
from tumorseg.serving.web.shield import request_id
from tumorseg.serving.web.store import Store

_GONE = "This study is not kept (any longer): send the file again."


def add_studies(
    app: flask.Flask, info: ModelInfo, segment: Segment, store: Store, note: Note, volumes: int
) -> None:
    """Adds the routes below `/studies`, each session's studies for itself alone.

    Args:
        app: The app.
        info: About the model.
        segment: The model.
        store: Where the studies wait to be looked at.
        note: Is told about each slice that is segmented.
        volumes: How many may be here at a time.
    """
    known, turns = Familiarity(info.inputs), Turns(volumes)

    @app.post("/studies")
    def send() -> dict[str, Any]:
        file = flask.request.files.get("file")
        if file is None:
            raise Rejected(400, "No file came with the request: send it as the form field `file`.")
        data, most = file.read(), store.max_bytes // 2  # more would drive out everybody else's
        with turns.turn(data):
            kept = segmented(segment, info.threshold, known, data, most, note)
        name = secrets.token_urlsafe(24)
        sessions.keep(store, f"studies/{name}", kept, kept.size)
        model = ModelNamed.of(info).model_dump()
        about = {"id": name, "threshold": info.threshold, "request_id": request_id()}
        return about | model | kept.answer()

    def wanted(name: str) -> Kept:
        study: Kept | None = sessions.find(store, f"studies/{name}")
        if study is None:
            flask.abort(404, _GONE)
        return study

    def slice_of(name: str, number: int) -> KeptSlice:
        study = wanted(name)
        if not 0 <= number < len(study.slices):
            flask.abort(404, f"The study has the slices 0 to {len(study.slices) - 1}.")
        return study.slices[number]

    def level() -> int:
        text = flask.request.args.get("threshold")
        return level_of(info.threshold if text is None else _threshold(text))

    @app.delete("/studies/<name>")
    def forget(name: str) -> tuple[str, int]:
        wanted(name)
        sessions.forget(store, f"studies/{name}")
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
