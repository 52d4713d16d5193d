"""The API's description for `/docs.json`: OpenAPI 3.1 with examples."""

import base64
from typing import Any

import numpy as np
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tumorseg.imaging.render import mask_png
from tumorseg.inference.answers import (
    BatchAnswer,
    Failure,
    ModelNamed,
    SegmentAnswer,
    SliceAnswer,
    SliceFailure,
    UploadAnswer,
    UploadFailure,
    Version,
)
from tumorseg.serving.forms import BatchForm, PictureForm, UploadForm, VolumeForm

Json = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"
_ID = "5f0c1d2e3b4a5968"
_ERROR = Failure(error="The file is empty: choose a picture and send it again.", request_id=_ID)
_MODEL = ModelNamed(
    model_version="3",
    model_digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    architecture="attention_unet",
    inputs_known=True,
)
_SLICE = SliceAnswer(
    mask_png=base64.b64encode(mask_png(np.pad(np.ones((4, 4), bool), 6))).decode(),
    width=16,
    height=16,
    area_px=16,
    area_mm2=None,
    area_fraction=0.0625,
    confidence=0.93,
    contours=[[[6.0, 6.0], [10.0, 6.0], [10.0, 10.0], [6.0, 10.0]]],
    warnings=[],
)
_SEGMENT = _SLICE.model_dump() | _MODEL.model_dump() | {"request_id": _ID}
_BATCH = BatchAnswer(
    **dict(_MODEL), request_id=_ID, results=[_SLICE, SliceFailure(error=_ERROR.error)]
)
_ABOUT = """Finds brain tumours in MRI slices. For research use only.

With a key set, every address but /livez, /readyz and /metrics needs it."""
_VOLUME_HEADERS = {
    "X-Model-Version": "Version of the model in its registry.",
    "X-Model-Digest": "SHA-256 of the model file.",
    "X-Inputs-Known": "`true` or `false`: whether the model knows its training slices.",
    "X-Tumour-Volume-mm3": "Volume of the tumour, where the file has distances in mm.",
    "X-Warnings": "A JSON list of sentences: what about the slices is unlike the training data.",
}
HEADERS = ("X-Request-ID", "Retry-After", *_VOLUME_HEADERS)


def describe(version: str) -> Json:
    """Makes the OpenAPI document.

    Args:
        version: Of the bento.
    """
    models: list[type[BaseModel]] = [SegmentAnswer, BatchAnswer, Failure, Version, UploadAnswer]
    models += [UploadFailure, PictureForm, BatchForm, VolumeForm, UploadForm]
    _, schemas = models_json_schema(
        [(model, "serialization") for model in models], ref_template=_REFERENCE
    )
    upload = {"anyOf": [_reference(UploadAnswer), _reference(UploadFailure)]}
    volume = {
        kind: {"schema": {"type": "string", "format": "binary", "contentMediaType": kind}}
        for kind in ("application/dicom", "application/gzip")
    }
    probe = {"responses": {"200": {"description": "It is so."}, "503": {"description": "Not so."}}}
    open_probe = {"security": [], **probe}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tumorseg", "version": version, "description": _ABOUT},
        "servers": [{"url": "."}],
        # An empty one among them: the key is needed only where one is set.
        "security": [{}, {"key": []}, {"bearer": []}],
        "paths": {
            "/segment": _post(
                "Finds the tumour in one slice.",
                PictureForm,
                {"file": "@slice.dcm", "probability": "true"},
                _json(_reference(SegmentAnswer), _SEGMENT),
            ),
            "/segment/batch": _post(
                "Finds the tumour in each of up to 64 slices; a bad file concerns only its result.",
                BatchForm,
                {"files": ["@first.png", "@second.jpg"]},
                _json(_reference(BatchAnswer), _BATCH.model_dump()),
            ),
            "/segment/volume": _post(
                "Finds the tumour in a volume; answers a DICOM SEG or NIfTI file on its grid.",
                VolumeForm,
                {"file": "@series.zip", "output": "nifti"},
                volume,
                _VOLUME_HEADERS,
            ),
            "/upload": _post(
                "Finds the tumour in one slice and keeps pictures of it for some minutes; for "
                "clients of JayPat2003/Brain-Tumor-Segmentation-Project.",
                UploadForm,
                {"file": "@slice.png"},
                _json(upload),
            ),
            "/version": {
                "get": {
                    "summary": "Names bento, model, code and data.",
                    "responses": _responses(_json(_reference(Version))),
                }
            },
            "/livez": {"get": {"summary": "The process lives.", **open_probe}},
            "/readyz": {"get": {"summary": "The model is loaded, and not stopping.", **open_probe}},
            "/metrics": {"get": {"summary": "Figures for Prometheus.", **open_probe}},
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _post(
    about: str,
    form: type[BaseModel],
    request: Json,
    content: Json,
    headers: dict[str, str] | None = None,
) -> Json:
    # JSON cannot hold the bytes of a file: its name stands in for it, as after curl's `-F`.
    media = {"schema": _reference(form), "example": request}
    return {
        "post": {
            "summary": about,
            "requestBody": {"required": True, "content": {"multipart/form-data": media}},
            "responses": _responses(content, headers or {}),
        }
    }


def _responses(content: Json, headers: dict[str, str] | None = None) -> Json:
    headers = {"X-Request-ID": "Names the request, also in the service's log."} | (headers or {})
    described = {
        name: {"description": about, "schema": {"type": "string"}}
        for name, about in headers.items()
    }
    return {
        "200": {"description": "The result.", "headers": described, "content": content},
        "default": {
            "description": "400, 401, 403, 408, 413, 415, 421, 500, 503 (with Retry-After) or 504: "
            "`error` says what is wrong and what to do.",
            "content": _json(_reference(Failure), _ERROR.model_dump()),
        },
    }


def _json(schema: Json, example: Json | None = None) -> Json:
    media = {"schema": schema} | ({"example": example} if example else {})
    return {"application/json": media}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
