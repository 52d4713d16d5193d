"""The BentoML service: `POST /segment` for programs, the Flask app's page for people."""

import base64
import os
from pathlib import Path
from typing import Annotated, Any, cast

import bentoml
from a2wsgi import WSGIMiddleware
from pydantic import Field, WithJsonSchema
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tumorseg.errors import InputError
from tumorseg.serving.decode import MAX_BYTES, TOO_MANY_BYTES, Rejected, decode
from tumorseg.serving.flask_app import FORM_OVERHEAD, create_app
from tumorseg.serving.guard import NO_PICTURE, Guard, refusal
from tumorseg.serving.predictor import Predictor, read_model
from tumorseg.serving.render import mask_png

_MAX_BODY = MAX_BYTES + FORM_OVERHEAD


def model_folder() -> Path:
    """Names the model's folder: `TUMORSEG_MODEL` if set, else `model` beside the package."""
    named = os.environ.get("TUMORSEG_MODEL")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "model"


class SegmentRequest(bentoml.IODescriptor):
    """The form that `/segment` takes."""

    # BentoML's own file types write every upload to a disk, and fetch whatever address a client
    # puts in its place; this one reads the form into memory and does nothing else.
    file: Annotated[
        bytes | None,
        # BentoML's client knows a file to upload by the type `file`, OpenAPI knows it as binary.
        WithJsonSchema({"type": "file", "format": "binary"}, mode="validation"),
        WithJsonSchema({"type": "string", "format": "binary"}, mode="serialization"),
    ] = Field(description="One slice as a JPEG or PNG file, at most 10 MiB and 4096 px a side.")

    @classmethod
    def mime_type(cls) -> str:
        """Names the request's media type for OpenAPI."""
        return "multipart/form-data"

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> "SegmentRequest":
        """Reads the form; `file` is None if the form has no such file or cannot be read."""
        parser = MultiPartParser(request.headers, request.stream())
        parser.spool_max_size = _MAX_BODY  # beyond which Starlette would write to a disk
        try:
            form = await parser.parse()
        except (MultiPartException, HTTPException):
            return cls(file=None)
        part = form.get("file")
        return cls(file=await part.read() if isinstance(part, UploadFile) else None)


SegmentRequest.multipart_fields = ["file"]


class SegmentReply(bentoml.IODescriptor):
    """The tumour found in one slice, at the slice's own size."""

    mask_png: str = Field(description="The mask as a PNG file in base64: 255 is tumour, 0 is not.")
    width: int = Field(description="Width of picture and mask, in pixels.")
    height: int = Field(description="Height of picture and mask, in pixels.")
    area_px: int = Field(description="Area of the tumour, in pixels.")
    area_fraction: float = Field(description="Share of the picture that is tumour, 0 to 1.")
    confidence: float | None = Field(
        description="Mean probability inside the mask; null where no tumour was found."
    )
    contours: list[list[list[float]]] = Field(
        description="One polygon [[x, y], …] a region, in pixels from the upper left corner."
    )
    model_version: str = Field(description="Version of the model in its registry.")
    model_digest: str = Field(description="SHA-256 of the model file.")
    architecture: str = Field(description="Architecture of the network.")


class _Pages:
    """The Flask app's place in the service until the model is loaded and the app can be made."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is None:
            raise RuntimeError("a page was asked for before the service was initialised")
        # No page reads the query, and a2wsgi fails on one that is not ASCII.
        await self.app({**scope, "query_string": b""}, receive, send)


_pages = _Pages()
# Only these paths are Flask's; a bare mount at `/` would also swallow BentoML's `/docs.json`.
_PAGE_PATHS = ("/", "/upload", "/uploads/{name}", "/segmented/{name}")


def _guarded(service: Any) -> Any:
    service.add_asgi_middleware(
        Guard, max_bytes=_MAX_BODY, too_large=TOO_MANY_BYTES, form_path="/segment"
    )
    return service


@_guarded
@bentoml.asgi_app(Starlette(routes=[Route(path, _pages) for path in _PAGE_PATHS]), path="/")
@bentoml.service(
    name="tumorseg",
    # Uploads live in the memory of one process, so a second one would not find them.
    workers=1,
    threads=4,
    traffic={"timeout": 60, "max_concurrency": 32},
)
class TumorSegmentation:
    """Finds brain tumours in MRI slices. For research use only."""

    def __init__(self) -> None:
        self.predictor = Predictor(model_folder())
        # a2wsgi declares its own, narrower types for the same WSGI and ASGI interfaces.
        app = cast(Any, create_app(self.predictor))
        _pages.app = cast(ASGIApp, WSGIMiddleware(app, workers=4))

    @bentoml.on_deployment
    def check_model() -> None:
        """Stops `bentoml serve` with one sentence, rather than have it restart its worker."""
        try:
            read_model(model_folder())
        except InputError as error:
            raise SystemExit(f"Error: {error}") from None

    @bentoml.api(route="/segment", input_spec=SegmentRequest, output_spec=SegmentReply)
    def segment(self, file: bytes | None) -> SegmentReply:
        """Finds the tumour in one JPEG or PNG slice.

        Bad input is answered 400, 413 or 415 with `{"error": "<one sentence>"}`.
        """
        try:
            if file is None:
                raise Rejected(400, NO_PICTURE)
            grey = decode(file).slices[0]
        except Rejected as error:
            # BentoML passes a response through; its own errors would hide or wrap the sentence.
            return cast(SegmentReply, refusal(error))
        found, info = self.predictor.segment(grey), self.predictor.info
        return SegmentReply(
            mask_png=base64.b64encode(mask_png(found.mask)).decode(),
            width=grey.shape[1],
            height=grey.shape[0],
            area_px=found.area_px,
            area_fraction=found.area_fraction,
            confidence=found.confidence,
            contours=found.contours,
            model_version=info.version,
            model_digest=info.digest,
            architecture=info.architecture,
        )
