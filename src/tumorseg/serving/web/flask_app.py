"""The web page and the superseded app's routes, as a Flask app for one process with threads."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flask
from markupsafe import Markup
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import FormDataParser

from tumorseg.imaging.decode import is_picture
from tumorseg.imaging.render import mask_png, overlay, to_png
from tumorseg.imaging.study import MAX_VOLUME_BYTES, Rejected
from tumorseg.inference.answers import ModelNamed
from tumorseg.inference.predictor import ModelInfo, Predictor
from tumorseg.inference.segment import Observer, SegmentSlices, StudySegmenter, unobserved
from tumorseg.monitoring.ood import OodDetector
from tumorseg.serving.forms import in_memory
from tumorseg.serving.guard import FAILED, refusal_headers
from tumorseg.serving.operations import log_failure, request_id
from tumorseg.serving.web.store import CookieSessions, Store, begun, find, from_listed_page, keep
from tumorseg.serving.web.studies import add_studies

# The one name that the superseded page asks for; here it is "the last upload of this session".
_LAST_UPLOAD = "uploaded_image.jpg"
_TITLES = {"unet": "U-Net", "attention_unet": "Attention U-Net"}
_HERE = Path(__file__).parent
_PARTS = ("page.css", "measures.js", "viewer.js", "chart.js", "sending.js", "studies.js", "page.js")


class _Parser(FormDataParser):
    def __init__(self, stream_factory: Any = None, **options: Any) -> None:
        super().__init__(in_memory, **options)


class _Request(flask.Request):
    form_data_parser_class = _Parser


class _App(flask.Flask):
    request_class = _Request
    session_interface = CookieSessions()

    def log_exception(self, exc_info: Any) -> None:
        """Logs an error in place of Flask, which would log message and path."""
        log_failure(exc_info[1])


def create_app(
    predictor: Predictor,
    store: Store | None = None,
    observe: Observer = unobserved,
    segment: SegmentSlices | None = None,
    volumes: int = 2,
    origins: Sequence[str] = (),
) -> flask.Flask:
    """Makes the web app.

    Args:
        predictor: The model that it serves.
        store: Where the pictures wait to be fetched; one for 10 minutes and 512 MiB if None.
        observe: Is called for each slice that is segmented.
        segment: Finds the tumour in slices; the predictor itself if None.
        volumes: How many may be decoded and segmented at a time.
        origins: Of other sites whose pages may show the pictures and send the cookie.
    """
    app = _App(__name__, template_folder=str(_HERE), static_folder=None)
    app.secret_key = secrets.token_bytes(32)
    app.config.update(
        SESSION_COOKIE_NAME="tumorseg", SESSION_COOKIE_HTTPONLY=True, LISTED_ORIGINS=origins
    )
    store = Store() if store is None else store
    detector = OodDetector(predictor.info.inputs)
    segmenter = StudySegmenter(segment or predictor.segment_many, detector, observe)
    _add_page(app, predictor.info, store)
    _add_upload(app, predictor.info, segmenter, store)
    add_studies(app, predictor.info, segmenter, store, volumes)
    _add_errors(app)

    @app.get("/<any(uploads, segmented):folder>/<name>")
    def picture(folder: str, name: str) -> flask.Response:
        found = find(store, f"{folder}/{name}")
        if found is None:
            flask.abort(404, "This picture is not kept (any longer): upload it again.")
        return flask.Response(found, mimetype=_mimetype(found))

    @app.after_request
    def show_elsewhere(response: flask.Response) -> flask.Response:
        if from_listed_page():
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return response

    return app


def _add_errors(app: flask.Flask) -> None:
    """Answers every error with its status and one sentence under `error`."""

    @app.errorhandler(Rejected)
    def rejected(error: Rejected) -> tuple[dict[str, str], int, dict[str, str]]:
        content = {"error": error.sentence, "request_id": request_id()}
        return content, error.status, refusal_headers(error.status)

    @app.errorhandler(HTTPException)
    def other(error: HTTPException) -> Any:
        response: Any = error.get_response()
        sentence = FAILED.sentence if error.code == FAILED.status else error.description
        response.data = flask.json.dumps({"error": sentence, "request_id": request_id()})
        response.content_type = "application/json"
        return response


def _add_page(app: flask.Flask, info: ModelInfo, store: Store) -> None:
    # They lie inside the page, under its nonce; none is a template.
    style, *scripts = (Markup((_HERE / name).read_text()) for name in _PARTS)

    @app.get("/")
    def page() -> flask.Response:
        # From here on the browser has a cookie, so that no name alone opens what it sends.
        begun()
        nonce = secrets.token_urlsafe(16)
        text = flask.render_template(
            "page.html",
            info=info,
            title=_TITLES.get(info.architecture, info.architecture),
            most=MAX_VOLUME_BYTES,
            minutes=round(store.seconds / 60),
            nonce=nonce,
            style=style,
            script=Markup("\n").join(scripts),
        )
        policy = (
            "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
            f"img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'; "
            f"script-src 'nonce-{nonce}'"
        )
        return flask.Response(text, headers={"Content-Security-Policy": policy})


def _add_upload(app: flask.Flask, info: ModelInfo, segmenter: StudySegmenter, store: Store) -> None:
    @app.post("/upload")
    def upload() -> dict[str, Any]:
        # The superseded app's clients look for these two errors in an answer with status 200.
        file = flask.request.files.get("file")
        if file is None:
            return {"error": "No file part"}
        if not file.filename:
            return {"error": "No selected file"}
        data = file.read()
        study, slices = segmenter.open(data)
        if len(study.slices) > 1:
            raise Rejected(415, "The file is a volume: send it to the page at / or one slice here.")
        (one,) = slices
        grey, found = one.grey, one.found
        # What a browser can show is shown as it was sent.
        original = data if is_picture(data) else to_png(grey)

        def kept(folder: str, picture: bytes) -> str:
            ending = _mimetype(picture).removeprefix("image/")
            name = f"{secrets.token_urlsafe(24)}.{ending}"  # which nobody can guess
            keep(store, f"{folder}/{name}", picture)
            return name

        reply = {
            "segmented_img": kept("segmented", to_png(overlay(grey, found.mask))),
            "mask_img": kept("segmented", mask_png(found.mask)),
            # From here on more than the superseded app's contract has; its clients ignore it.
            "uploaded_img": kept("uploads", original),
            "width": grey.shape[1],
            "height": grey.shape[0],
            "area_px": found.area_px,
            "area_fraction": found.area_fraction,
            "warnings": one.warnings,
            "request_id": request_id(),
        } | ModelNamed.of(info).model_dump()
        keep(store, f"uploads/{_LAST_UPLOAD}", original, guessable=True)
        return reply


def _mimetype(picture: bytes) -> str:
    return "image/jpeg" if picture.startswith(b"\xff\xd8") else "image/png"
