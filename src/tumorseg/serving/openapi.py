"""The API's description for `/docs.json`: OpenAPI 3.1 with examples and every refusal."""

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tumorseg.inference.answers import (
    BatchAnswer,
    Failure,
    SegmentAnswer,
    UploadAnswer,
    UploadFailure,
    Version,
)
from tumorseg.serving import examples
from tumorseg.serving.examples import Json
from tumorseg.serving.forms import BatchForm, PictureForm, UploadForm, VolumeForm

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
    upload = _json(UploadAnswer, examples.UPLOAD)
    upload["application/json"]["schema"] = {
        "anyOf": [_reference(UploadAnswer), _reference(UploadFailure)]
    }
    return {
        "/segment": _post(
            "/segment",
            "Finds the tumour in one slice.",
            PictureForm,
            {
                "slice": ["file=@slice.png"],
                "with probabilities": ["file=@slice.dcm", "probability=true"],
            },
            _json(SegmentAnswer, examples.SEGMENT),
        ),
        "/segment/batch": _post(
            "/segment/batch",
            "Finds the tumour in each of up to 64 slices; a bad file spoils only its own result.",
            BatchForm,
            {"two slices": ["files=@first.png", "files=@second.jpg"]},
            _json(BatchAnswer, examples.BATCH),
        ),
        "/segment/volume": _post(
            "/segment/volume",
            "Finds the tumour in a volume: a DICOM SEG or NIfTI file on the grid of what was sent.",
            VolumeForm,
            {
                "series": ["file=@series.zip"],
                "series, answered as NIfTI": ["file=@series.zip", "output=nifti"],
                "NIfTI": ["file=@brain.nii.gz"],
            },
            {kind: {"schema": _file(kind)} for kind in ("application/dicom", "application/gzip")},
            {name: _header(text) for name, text in _VOLUME_HEADERS.items()},
        ),
        "/upload": _post(
            "/upload",
            "Finds the tumour in one slice and keeps pictures of it for some minutes: what clients "
            "of JayPat2003/Brain-Tumor-Segmentation-Project send and expect.",
            UploadForm,
            {"slice": ["file=@slice.png"]},
            upload,
        ),
        "/version": _get(
            "version",
            "Names bento, model, code and data.",
            _json(Version, examples.VERSION),
        ),
        "/livez": _probe("livez", "The process lives.", 503),
        "/readyz": _probe("readyz", "The model is loaded, and the service is not stopping.", 503),
        "/metrics": _get("metrics", "Figures for Prometheus.", {"text/plain": {}}, secured=False),
    }


def _post(
    path: str,
    about: str,
    form: type[BaseModel],
    requests: dict[str, list[str]],
    content: Json,
    more: Json | None = None,
) -> Json:
    media = {
        "schema": _reference(form),
        "examples": {title: examples.request(path, *fields) for title, fields in requests.items()},
    }
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
        answer = _answer(_REFUSALS[status], _json(Failure, examples.ERROR))
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


def _file(kind: str) -> Json:
    return {"type": "string", "format": "binary", "contentMediaType": kind}


def _header(about: str) -> Json:
    return {"description": about, "schema": {"type": "string"}}
