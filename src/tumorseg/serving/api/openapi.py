"""The API's description for `/docs.json`: OpenAPI 3.1 with examples and every refusal."""

import base64
from typing import Any

import numpy as np
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tumorseg.serving.answers import BatchAnswer, Failure, SegmentAnswer, SliceFailure, Version
from tumorseg.serving.api.forms import BatchForm, PictureForm, VolumeForm
from tumorseg.serving.render import mask_png

Json = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"
_REFUSALS = {
    400: "The form or the file is damaged or incomplete, or there are too many files.",
    401: "An API key is set, and the request brought none or a wrong one.",
    408: "The body did not arrive in time.",
    413: "The file has too many bytes, pixels or slices.",
    415: "The request is no multipart form, or the file is of a kind that is not taken here.",
    500: "The service failed.",
    503: "The service is busy, starting or stopping; Retry-After says when to try again.",
    504: "No answer was found in time.",
}
_ABOUT = """Finds brain tumours in MRI slices. For research use only.

With a key set, every address but /livez, /readyz and /metrics needs it."""
_ID = "5f0c1d2e3b4a5968"
_MODEL: Json = {
    "model_version": "3",
    "model_digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "architecture": "attention_unet",
}
_SLICE: Json = {
    "mask_png": base64.b64encode(mask_png(np.pad(np.ones((4, 4), bool), 6))).decode(),
    "width": 16,
    "height": 16,
    "area_px": 16,
    "area_mm2": None,
    "area_fraction": 0.0625,
    "confidence": 0.93,
    "contours": [[[6.0, 6.0], [10.0, 6.0], [10.0, 10.0], [6.0, 10.0]]],
    "warnings": [],
}
_ERROR: Json = {
    "error": "The file is empty: choose a picture and send it again.",
    "request_id": _ID,
}
_ONE = SegmentAnswer(**_SLICE, **_MODEL, request_id=_ID).model_dump(exclude={"probability_png"})
_MANY = {
    "request_id": _ID,
    **_MODEL,
    "results": [_SLICE, SliceFailure(error=_ERROR["error"]).model_dump()],
}
_VOLUME_HEADERS = {
    "X-Model-Version": "Version of the model in its registry.",
    "X-Model-Digest": "SHA-256 of the model file.",
    "X-Tumour-Volume-mm3": "Volume of the tumour, where the file tells distances in mm.",
    "X-Warnings": "A JSON list of sentences: what about the slices is unlike the training data.",
}
HEADERS = ("X-Request-ID", "Retry-After", *_VOLUME_HEADERS)


def describe(version: str) -> Json:
    """Makes the OpenAPI document.

    Args:
        version: Of the bento.
    """
    models: list[type[BaseModel]] = [SegmentAnswer, BatchAnswer, Failure, Version]
    forms: list[type[BaseModel]] = [PictureForm, BatchForm, VolumeForm]
    _, schemas = models_json_schema(
        [(model, "serialization") for model in [*models, *forms]], ref_template=_REFERENCE
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "tumorseg", "version": version, "description": _ABOUT},
        "servers": [{"url": "."}],
        # An empty one among them: the key is needed only where one is set.
        "security": [{}, {"key": []}, {"bearer": []}],
        "paths": _paths(),
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _paths() -> Json:
    volume: Json = {kind: {"schema": {}} for kind in ("application/dicom", "application/gzip")}
    return {
        "/segment": _post(
            "segment", "Finds the tumour in one slice.", PictureForm, _json(SegmentAnswer, _ONE)
        ),
        "/segment/batch": _post(
            "segment_batch",
            "Finds the tumour in each of up to 64 slices; a bad file spoils only its own result.",
            BatchForm,
            _json(BatchAnswer, _MANY),
        ),
        "/segment/volume": _post(
            "segment_volume",
            "Finds the tumour in a volume: a DICOM SEG or NIfTI file on the grid of what was sent.",
            VolumeForm,
            volume,
            {name: _header(text) for name, text in _VOLUME_HEADERS.items()},
        ),
        "/version": _get("version", "Names bento, model, code and data.", _json(Version, None)),
        "/livez": _probe("livez", "The process lives.", 503),
        "/readyz": _probe("readyz", "The model is loaded, and the service is not stopping.", 503),
        "/metrics": _get("metrics", "Figures for Prometheus.", {"text/plain": {}}, secured=False),
    }


def _post(
    name: str, about: str, form: type[BaseModel], content: Json, more: Json | None = None
) -> Json:
    reference = {"$ref": _REFERENCE.format(model=form.__name__)}
    return {
        "post": {
            "operationId": name,
            "summary": about,
            "requestBody": {
                "required": True,
                "content": {"multipart/form-data": {"schema": reference}},
            },
            "responses": {"200": _answer(about, content, more), **_refusals(*_REFUSALS)},
        }
    }


def _get(name: str, about: str, content: Json, *, secured: bool = True) -> Json:
    responses = {"200": _answer(about, content), **(_refusals(401, 503) if secured else {})}
    return {
        "get": {"operationId": name, "summary": about, "responses": responses}
        | ({} if secured else {"security": []})
    }


def _probe(name: str, about: str, otherwise: int) -> Json:
    probe = _get(name, about, {"text/plain": {}}, secured=False)
    probe["get"]["responses"][str(otherwise)] = {"description": "It is not so."}
    return probe


def _refusals(*statuses: int) -> Json:
    answers = {}
    for status in statuses:
        answer = _answer(_REFUSALS[status], _json(Failure, _ERROR))
        if status == 503:
            answer["headers"]["Retry-After"] = _header("Seconds.")
        answers[str(status)] = answer
    return answers


def _answer(about: str, content: Json, more: Json | None = None) -> Json:
    headers = {"X-Request-ID": _header("Names the request, also in the service's log.")}
    return {"description": about, "headers": headers | (more or {}), "content": content}


def _json(model: type[BaseModel], example: Json | None) -> Json:
    media: Json = {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}
    if example is not None:
        media["example"] = example
    return {"application/json": media}


def _header(about: str) -> Json:
    return {"description": about, "schema": {"type": "string"}}
