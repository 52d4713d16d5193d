"""The web page and the seed app's routes, as a Flask app that any WSGI server can run."""

import io
import secrets
from pathlib import Path
from typing import IO, Any

import flask
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from tumorseg.serving.decode import MAX_BYTES, TOO_MANY_BYTES, Rejected, decode
from tumorseg.serving.predictor import Predictor
from tumorseg.serving.render import mask_png, overlay, to_png
from tumorseg.serving.store import Store

# What a multipart form may add to the file itself: boundaries, headers, other fields.
FORM_OVERHEAD = 64 * 1024
_KEEP_SECONDS = 600.0
_KEEP_BYTES = 256 * 1024 * 1024
# The one name that the seed's page asks for; here it means "the last upload of this session".
_LAST_UPLOAD = "uploaded_image.jpg"


class _MemoryRequest(flask.Request):
    """A request whose uploads stay in memory: no scan is written to a disk, not even briefly."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        return io.BytesIO()


class _App(flask.Flask):
    request_class = _MemoryRequest


def create_app(predictor: Predictor, store: Store | None = None) -> flask.Flask:
    """Makes the web app.

    Args:
        predictor: The model that it serves.
        store: Where the pictures wait to be fetched; one for 10 minutes and 256 MiB if None.
    """
    app = _App(__name__, template_folder=str(Path(__file__).parent), static_folder=None)
    app.secret_key = secrets.token_bytes(32)
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_BYTES + FORM_OVERHEAD,
        SESSION_COOKIE_NAME="tumorseg",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
    )
    kept = Store(_KEEP_SECONDS, _KEEP_BYTES) if store is None else store
    _add_page(app, predictor)
    _add_upload(app, predictor, kept)
    _add_pictures(app, kept)
    _add_errors(app)
    app.after_request(_secure)
    return app


def _add_page(app: flask.Flask, predictor: Predictor) -> None:
    @app.get("/")
    def page() -> str:
        flask.g.nonce = secrets.token_urlsafe(16)
        return flask.render_template("page.html", info=predictor.info, nonce=flask.g.nonce)


def _add_upload(app: flask.Flask, predictor: Predictor, store: Store) -> None:
    @app.post("/upload")
    def upload() -> dict[str, Any]:
        # The seed's clients look for these two errors in an answer with status 200.
        file = flask.request.files.get("file")
        if file is None:
            return {"error": "No file part"}
        if not file.filename:
            return {"error": "No selected file"}
        grey = decode(file.read()).slices[0]
        found = predictor.segment(grey)
        original = to_png(grey)
        owner = flask.session.setdefault("id", secrets.token_urlsafe(16))
        store.put(f"last/{owner}", original)
        return {
            "segmented_img": _keep(store, "segmented", to_png(overlay(grey, found.mask))),
            "mask_img": _keep(store, "segmented", mask_png(found.mask)),
            # From here on more than the seed's contract has; its clients look past it.
            "uploaded_img": _keep(store, "uploads", original),
            "width": grey.shape[1],
            "height": grey.shape[0],
            "area_px": found.area_px,
            "area_fraction": found.area_fraction,
            "model_version": predictor.info.version,
        }


def _keep(store: Store, folder: str, png: bytes) -> str:
    """Keeps a picture under a name that nobody can guess, and returns the name."""
    name = f"{secrets.token_urlsafe(24)}.png"
    store.put(f"{folder}/{name}", png)
    return name


def _add_pictures(app: flask.Flask, store: Store) -> None:
    def answer(key: str) -> flask.Response:
        png = store.get(key)
        if png is None:
            flask.abort(404, "This picture is not kept (any longer): upload it again.")
        return flask.Response(png, mimetype="image/png")

    @app.get("/uploads/<name>")
    def uploaded(name: str) -> flask.Response:
        own = name == _LAST_UPLOAD
        return answer(f"last/{flask.session.get('id', '')}" if own else f"uploads/{name}")

    @app.get("/segmented/<name>")
    def segmented(name: str) -> flask.Response:
        return answer(f"segmented/{name}")


def _add_errors(app: flask.Flask) -> None:
    @app.errorhandler(Rejected)
    def rejected(error: Rejected) -> tuple[dict[str, str], int]:
        return {"error": error.sentence}, error.status

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> tuple[dict[str, str], int]:
        return rejected(TOO_MANY_BYTES)

    @app.errorhandler(HTTPException)
    def other(error: HTTPException) -> tuple[dict[str, str], int]:
        return {"error": error.description or error.name}, error.code or 500


def _secure(response: flask.Response) -> flask.Response:
    """Keeps scans out of caches and lets the page run nothing but its own script."""
    policy = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    if nonce := flask.g.get("nonce"):
        policy += (
            f"; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'"
            f"; script-src 'nonce-{nonce}'"
        )
    response.headers["Content-Security-Policy"] = policy
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response
