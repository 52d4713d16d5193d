"""The API's description for `/docs.json`: OpenAPI 3.1 with examples and every refusal."""

import base64
from typing import Any

import numpy as np
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tumorseg.imaging.render import mask_png
from tumorseg.inference.answers import (
    BatchAnswer,
    Failure,
    SegmentAnswer,
    SliceFailure,
    UploadAnswer,
    UploadFailure,
    Version,
)
from tumorseg.serving.forms import BatchForm, PictureForm, UploadForm, VolumeForm

Json = dict[str, Any]
_ID = "5f0c1d2e3b4a5968"
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_MODEL: Json = {
    "model_version": "3",
    "model_digest": _DIGEST,
    "architecture": "attention_unet",
    "inputs_known": True,
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
_SEGMENT: Json = SegmentAnswer(**_SLICE, **_MODEL, request_id=_ID).model_dump(
    exclude={"probability_png"}
)
_BATCH: Json = {
    "request_id": _ID,
    **_MODEL,
    "results": [_SLICE, SliceFailure(error=_ERROR["error"]).model_dump()],
}
_UPLOAD: Json = {
    "segmented_img": "Yw3vKX0Qm5sZp8Rb.png",
    "mask_img": "u7DkE2nHc9TfWq4L.png",
    "uploaded_img": "aJ6sVb1GxM3oPz5C.png",
    **{key: _SLICE[key] for key in ("width", "height", "area_px", "area_fraction", "warnings")},
    **_MODEL,
    "request_id": _ID,
}
_VERSION: Json = {
    "bento": "tumorseg:k2vd6xqmzgj3",
    "model": {"version": "3", "digest": _DIGEST, "architecture": "attention_unet"},
    "git": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "data": "d41d8cd98f00b204e9800998ecf8427e.dir",
}

_REFERENCE = "#/components/schemas/{model}"
_REFUSALS = {
    400: "The form or the file is damaged or incomplete, or there are too many files.",
    401: "An API key is set, and the request brought none or a wrong one.",
    403: "A page of another site sent the form.",
    408: "The body did not arrive in time.",
    413: "The file has too many bytes, pixels or slices.",
    415: "The request is no multipart form, or the file is of a kind that is not taken here.",
    500: "The service failed.",
    503: "The service is busy, starting or stopping; Retry-After says when to try again.",
    504: "No answer was found in time.",
}
_ABOUT = """Finds brain tumours in MRI slices. For research use only.

With a key set, every address but /livez, /readyz and /metrics needs it."""
_VOLUME_HEADERS = {
    "X-Model-Version": "Version of the model in its registry.",
    "X-Model-Digest": "SHA-256 of the model file.",
    "X-Inputs-Known": "`true` or `false`: whether the model knows its training slices.",
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
    models += [UploadAnswer, UploadFailure]
    forms: list[type[BaseModel]] = [PictureForm, BatchForm, VolumeForm, UploadForm]
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
    upload = _json(UploadAnswer, _UPLOAD)
    upload["application/json"]["schema"] = {
        "anyOf": [_reference(UploadAnswer), _reference(UploadFailure)]
    }
    text: Json = {"text/plain": {}}
    not_so: Json = {"503": {"description": "It is not so."}}
    return {
        "/segment": _post(
            "/segment",
            "Finds the tumour in one slice.",
            PictureForm,
            {"file": "@slice.dcm", "probability": "true"},
            _json(SegmentAnswer, _SEGMENT),
        ),
        "/segment/batch": _post(
            "/segment/batch",
            "Finds the tumour in each of up to 64 slices; a bad file spoils only its own result.",
            BatchForm,
            {"files": ["@first.png", "@second.jpg"]},
            _json(BatchAnswer, _BATCH),
        ),
        "/segment/volume": _post(
            "/segment/volume",
            "Finds the tumour in a volume: a DICOM SEG or NIfTI file on the grid of what was sent.",
            VolumeForm,
            {"file": "@series.zip", "output": "nifti"},
            {
                kind: {"schema": {"type": "string", "format": "binary", "contentMediaType": kind}}
                for kind in ("application/dicom", "application/gzip")
            },
            {name: _header(about) for name, about in _VOLUME_HEADERS.items()},
        ),
        "/upload": _post(
            "/upload",
            "Finds the tumour in one slice and keeps pictures of it for some minutes: what clients "
            "of JayPat2003/Brain-Tumor-Segmentation-Project send and expect.",
            UploadForm,
            {"file": "@slice.png"},
            upload,
        ),
        "/version": _get("Names bento, model, code and data.", _json(Version, _VERSION)),
        "/livez": _get("The process lives.", text, not_so),
        "/readyz": _get("The model is loaded, the service not stopping.", text, not_so),
        "/metrics": _get("Figures for Prometheus.", text, {}),
    }


def _post(
    path: str,
    about: str,
    form: type[BaseModel],
    request: Json,
    content: Json,
    more: Json | None = None,
) -> Json:
    # JSON cannot hold the bytes of a file: its name stands there, as after curl's `-F`.
    media = {"schema": _reference(form), "example": request}
    # Only Flask asks from which site a form comes.
    refused = [status for status in _REFUSALS if status != 403 or path == "/upload"]
    return {
        "post": {
            "operationId": path.strip("/").replace("/", "_"),
            "summary": about,
            "requestBody": {"required": True, "content": {"multipart/form-data": media}},
            "responses": {"200": _answer(about, content, more), **_refusals(*refused)},
        }
    }


def _get(about: str, content: Json, probe: Json | None = None) -> Json:
    """An address without a form; a probe needs no key, and `probe` is what it answers otherwise."""
    answers = {"200": _answer(about, content), **(_refusals(401, 503) if probe is None else probe)}
    secured: Json = {} if probe is None else {"security": []}
    return {"get": {"summary": about, "responses": answers, **secured}}


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


def _json(model: type[BaseModel], example: Json) -> Json:
    return {"application/json": {"schema": _reference(model), "example": example}}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _header(about: str) -> Json:
    return {"description": about, "schema": {"type": "string"}}
