"""What stands around the web app: bounds on what comes in, headers on what goes out."""

import io
from http import HTTPStatus

import flask
from werkzeug.exceptions import (
    HTTPException,
    MethodNotAllowed,
    RequestEntityTooLarge,
    ServiceUnavailable,
)
from werkzeug.formparser import FormDataParser

from tumorseg.imaging.study import (
    MAX_BYTES,
    MAX_VOLUME_BYTES,
    TOO_MANY_BYTES,
    TOO_MANY_VOLUME_BYTES,
    Refusal,
    Rejected,
)
from tumorseg.serving.operations import HEADER, SECURITY_HEADERS, identify

# What a multipart form may add to the files themselves: boundaries, headers, other fields.
OVERHEAD = 64 * 1024
_RETRY_SECONDS = 5
FAILED = Refusal(500, "The service failed: try again, and tell whoever runs it if it fails again.")
_OTHER_SITE = Refusal(403, "Another site sent this form: choose the file on this page.")


def in_memory(
    total_content_length: int | None,
    content_type: str | None,
    filename: str | None,
    content_length: int | None = None,
) -> io.BytesIO:
    """Werkzeug's `stream_factory` that writes no upload to a disk, not even briefly."""
    return io.BytesIO()


class MemoryRequest(flask.Request):
    """A request whose uploads stay in memory."""

    def make_form_data_parser(self) -> FormDataParser:
        """Makes the parser as Flask does, with streams in memory."""
        return self.form_data_parser_class(
            stream_factory=in_memory,
            max_form_memory_size=self.max_form_memory_size,
            max_content_length=self.max_content_length,
            max_form_parts=self.max_form_parts,
            cls=self.parameter_storage_class,
        )


def request_id() -> str:
    """Names the request at hand."""
    if "request_id" not in flask.g:
        flask.g.request_id = identify(flask.request.headers.get(HEADER))
    return str(flask.g.request_id)


def refuse_other_sites(app: flask.Flask) -> None:
    """Refuses forms that another site's page sends.

    Such a form would come without the browser's cookie and be given a new one, so that its file
    would take the place of the user's own.
    """

    @app.before_request
    def refuse() -> None:
        site, mode = (flask.request.headers.get(f"Sec-Fetch-{what}") for what in ("Site", "Mode"))
        if flask.request.method == "POST" and (site, mode) == ("cross-site", "navigate"):
            raise Rejected(*_OTHER_SITE)


def add_limits(app: flask.Flask) -> None:
    """Bounds each request's body: volumes come to /studies only."""

    @app.before_request
    def limit() -> None:
        most = MAX_VOLUME_BYTES if flask.request.path == "/studies" else MAX_BYTES
        flask.request.max_content_length = most + OVERHEAD


def add_errors(app: flask.Flask) -> None:
    """Has every error answered with its status and one sentence under `error`."""

    @app.errorhandler(Rejected)
    def rejected(error: Refusal | Rejected) -> tuple[dict[str, str], int]:
        return {"error": error.sentence, "request_id": request_id()}, error.status

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> tuple[dict[str, str], int]:
        volume = flask.request.path == "/studies"
        return rejected(TOO_MANY_VOLUME_BYTES if volume else TOO_MANY_BYTES)

    @app.errorhandler(HTTPException)
    def other(error: HTTPException) -> flask.Response:
        status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
        own = FAILED.sentence if status == FAILED.status else error.description
        response = flask.jsonify(error=own or error.name, request_id=request_id())
        response.status_code = status
        if isinstance(error, ServiceUnavailable):
            response.headers["Retry-After"] = str(_RETRY_SECONDS)
        if isinstance(error, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return response


def secure(response: flask.Response) -> flask.Response:
    """Keeps scans out of caches and lets the page run nothing but its own script."""
    policy = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    if nonce := flask.g.get("nonce"):
        policy += (
            f"; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'"
            f"; script-src 'nonce-{nonce}'"
        )
    response.headers.update(SECURITY_HEADERS)
    response.headers["Content-Security-Policy"] = policy
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers[HEADER] = request_id()
    return response
