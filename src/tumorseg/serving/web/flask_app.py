"""The web page and the superseded app's routes, as a Flask app that any WSGI server can run.

Alone, with one process (what it keeps lies in the memory of that process) and more threads than
the two that volumes may take:

    TUMORSEG_MODEL=FOLDER gunicorn --threads 8 'tumorseg.serving.web.flask_app:from_environment()'
"""

import os
import secrets
from pathlib import Path
from typing import Any

import flask
from markupsafe import Markup

from tumorseg.imaging.decode import (
    MAX_BYTES,
    MAX_VOLUME_BYTES,
    TOO_MANY_BYTES,
    TOO_MANY_VOLUME_BYTES,
    Refusal,
    Rejected,
    decode,
    is_picture,
)
from tumorseg.imaging.render import mask_png, overlay, to_png
from tumorseg.inference.answers import ModelNamed
from tumorseg.inference.predictor import ModelInfo, Predictor
from tumorseg.monitoring.ood import Familiarity
from tumorseg.serving.keys import VARIABLE
from tumorseg.serving.tracing import log_failure
from tumorseg.serving.web import sessions
from tumorseg.serving.web.facts import facts, limits, title
from tumorseg.serving.web.kept import Note, Segment, unnoted
from tumorseg.serving.web.shield import (
    MemoryRequest,
    add_errors,
    add_limits,
    add_lock,
    request_id,
    secure,
)
from tumorseg.serving.web.store import Store
from tumorseg.serving.web.studies import add_studies

# What a multipart form may add to the file itself: boundaries, headers, other fields.
FORM_OVERHEAD = 64 * 1024
# The one name that the superseded page asks for; here it is "the last upload of this session".
_LAST_UPLOAD = "uploaded_image.jpg"
_HERE = Path(__file__).parent
_PARTS = ("page.css", "measures.js", "viewer.js", "chart.js", "sending.js", "studies.js", "page.js")


class _App(flask.Flask):
    request_class = MemoryRequest
    session_interface = sessions.CookieSessions()

    def log_exception(self, exc_info: Any) -> None:
        """Logs what failed in place of Flask, which would write down path and message."""
        log_failure(exc_info[1], request_id())


def from_environment() -> flask.Flask:
    """Makes the web app for a WSGI server, with the model that `TUMORSEG_MODEL` names.

    With `TUMORSEG_API_KEY` set, every request must bring that key.

    Raises:
        InputError: If the folder does not hold a working model.
    """
    return create_app(Predictor(model_folder()), key=os.environ.get(VARIABLE))


def model_folder() -> Path:
    """Names the model's folder: `TUMORSEG_MODEL` if set, else `model` beside the package."""
    named = os.environ.get("TUMORSEG_MODEL")
    return Path(named) if named else Path(__file__).resolve().parents[3] / "model"


def create_app(
    predictor: Predictor,
    store: Store | None = None,
    note: Note = unnoted,
    key: str | None = None,
    segment: Segment | None = None,
    volumes: int = 2,
) -> flask.Flask:
    """Makes the web app.

    Args:
        predictor: The model that it serves.
        store: Where the pictures wait to be fetched; one for 10 minutes and 512 MiB if None.
        note: Is told about each slice that is segmented.
        key: What every request must bring; none if None, or where the app is mounted in the
            service, which asks for it before.
        segment: Finds the tumour in slices; the predictor itself if None.
        volumes: How many may be decoded and segmented at a time.
    """
    app = _App(__name__, template_folder=str(_HERE), static_folder=None)
    app.secret_key = secrets.token_bytes(32)
    app.config.update(
        SESSION_COOKIE_NAME="tumorseg",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
    )
    kept = Store() if store is None else store
    segment = segment or predictor.segment_many
    add_lock(app, key)
    add_limits(app, lambda path: _most_for(path) + FORM_OVERHEAD)
    _add_page(app, predictor.info, kept)
    _add_upload(app, predictor.info, segment, kept, note)
    _add_pictures(app, kept)
    add_studies(app, predictor.info, segment, kept, note, volumes)
    add_errors(app, _too_large_for)
    app.after_request(secure)
    return app


def _most_for(path: str) -> int:
    return MAX_VOLUME_BYTES if path == "/studies" else MAX_BYTES


def _too_large_for(path: str) -> Refusal:
    return TOO_MANY_VOLUME_BYTES if path == "/studies" else TOO_MANY_BYTES


def _add_page(app: flask.Flask, info: ModelInfo, store: Store) -> None:
    # They lie inside the page, under its nonce; none is a template.
    style, *scripts = (Markup((_HERE / name).read_text()) for name in _PARTS)

    @app.get("/")
    def page() -> str:
        # From here on the browser has a cookie, so that no name alone opens what it sends.
        sessions.begun()
        flask.g.nonce = secrets.token_urlsafe(16)
        return flask.render_template(
            "page.html",
            info=info,
            title=title(info),
            facts=facts(info),
            limits=limits(info),
            most=MAX_VOLUME_BYTES,
            minutes=round(store.seconds / 60),
            nonce=flask.g.nonce,
            style=style,
            script=Markup("\n").join(scripts),
        )


def _add_upload(
    app: flask.Flask, info: ModelInfo, segment: Segment, store: Store, note: Note
) -> None:
    known = Familiarity(info.inputs)

    @app.post("/upload")
    def upload() -> dict[str, Any]:
        # The superseded app's clients look for these two errors in an answer with status 200.
        file = flask.request.files.get("file")
        if file is None:
            return {"error": "No file part"}
        if not file.filename:
            return {"error": "No selected file"}
        data = file.read()
        study = decode(data)
        if len(study.slices) > 1:
            raise Rejected(415, "The file is a volume: send it to the page at / or one slice here.")
        grey = study.slices[0]
        (found,) = segment([grey])
        look = known.look(grey, study.colour, study.modality)
        note(found, look)
        # What a browser can show is shown as it was sent.
        original = data if is_picture(data) else to_png(grey)

        def keep(folder: str, picture: bytes) -> str:
            ending = _mimetype(picture).removeprefix("image/")
            name = f"{secrets.token_urlsafe(24)}.{ending}"  # which nobody can guess
            sessions.keep(store, f"{folder}/{name}", picture)
            return name

        reply = {
            "segmented_img": keep("segmented", to_png(overlay(grey, found.mask))),
            "mask_img": keep("segmented", mask_png(found.mask)),
            # From here on more than the superseded app's contract has; its clients look past it.
            "uploaded_img": keep("uploads", original),
            "width": grey.shape[1],
            "height": grey.shape[0],
            "area_px": found.area_px,
            "area_fraction": found.area_fraction,
            "warnings": look.warnings,
            "request_id": request_id(),
        } | ModelNamed.of(info).model_dump()
        sessions.keep(store, f"uploads/{_LAST_UPLOAD}", original, guessable=True)
        return reply


def _add_pictures(app: flask.Flask, store: Store) -> None:
    @app.get("/<any(uploads, segmented):folder>/<name>")
    def picture(folder: str, name: str) -> flask.Response:
        kept = sessions.find(store, f"{folder}/{name}")
        if kept is None:
            flask.abort(404, "This picture is not kept (any longer): upload it again.")
        return flask.Response(kept, mimetype=_mimetype(kept))


def _mimetype(picture: bytes) -> str:
    """Tells JPEG from PNG: nothing else that was decoded is kept as it came."""
    return "image/jpeg" if picture.startswith(b"\xff\xd8") else "image/png"
