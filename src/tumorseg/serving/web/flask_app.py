"""The web page and the superseded app's routes, as a Flask app that any WSGI server can run.

Alone it needs one process, in whose memory pictures and studies are kept, and more threads than
volumes may take; a gateway in front of it decides whom it answers.
"""

import os
import secrets
from pathlib import Path
from typing import Any

import flask
from markupsafe import Markup

from tumorseg.imaging.decode import is_picture
from tumorseg.imaging.render import mask_png, overlay, to_png
from tumorseg.imaging.study import MAX_VOLUME_BYTES, Rejected
from tumorseg.inference.answers import ModelNamed
from tumorseg.inference.predictor import ModelInfo, Predictor
from tumorseg.inference.segment import Observer, SegmentSlices, StudySegmenter, unobserved
from tumorseg.monitoring.ood import OodDetector
from tumorseg.serving.operations import log_failure
from tumorseg.serving.web.shield import (
    MemoryRequest,
    add_errors,
    add_limits,
    refuse_other_sites,
    request_id,
    secure,
)
from tumorseg.serving.web.store import CookieSessions, Store, begun, find, keep
from tumorseg.serving.web.studies import add_studies

# The one name that the superseded page asks for; here it is "the last upload of this session".
_LAST_UPLOAD = "uploaded_image.jpg"
_TITLES = {"unet": "U-Net", "attention_unet": "Attention U-Net"}
_HERE = Path(__file__).parent
_PARTS = ("page.css", "measures.js", "viewer.js", "chart.js", "sending.js", "studies.js", "page.js")


class _App(flask.Flask):
    request_class = MemoryRequest
    session_interface = CookieSessions()

    def log_exception(self, exc_info: Any) -> None:
        """Logs what failed in place of Flask, which would write down path and message."""
        log_failure(exc_info[1], request_id())


def model_folder() -> Path:
    """Names the model's folder: `TUMORSEG_MODEL` if set, else `model` beside the package."""
    named = os.environ.get("TUMORSEG_MODEL")
    return Path(named) if named else Path(__file__).resolve().parents[3] / "model"


def create_app(
    predictor: Predictor,
    store: Store | None = None,
    observe: Observer = unobserved,
    segment: SegmentSlices | None = None,
    volumes: int = 2,
) -> flask.Flask:
    """Makes the web app.

    Args:
        predictor: The model that it serves.
        store: Where the pictures wait to be fetched; one for 10 minutes and 512 MiB if None.
        observe: Is called for each slice that is segmented.
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
    store = Store() if store is None else store
    detector = OodDetector(predictor.info.inputs)
    segmenter = StudySegmenter(segment or predictor.segment_many, detector, observe)
    refuse_other_sites(app)
    add_limits(app)
    _add_page(app, predictor.info, store)
    _add_upload(app, predictor.info, segmenter, store)
    _add_pictures(app, store)
    add_studies(app, predictor.info, segmenter, store, volumes)
    add_errors(app)
    app.after_request(secure)
    return app


def _title(info: ModelInfo) -> str:
    """Names the network as people write it."""
    return _TITLES.get(info.architecture, info.architecture)


def _facts(info: ModelInfo) -> list[tuple[str, str]]:
    """Lists what identifies the model, as (name, value)."""
    return [
        ("Network", _title(info)),
        ("Version", info.version),
        ("Sees", f"one slice at a time, at {info.image_size} × {info.image_size} pixels"),
        ("Threshold", f"{info.threshold:.2f}"),
        ("Weights", info.digest[:12]),
        ("Training data", info.data_md5[:12]),
        ("Code", info.git_sha[:12]),
    ]


def _limits(info: ModelInfo) -> list[str]:
    """Says in sentences how well the model did on slices that it was not trained on.

    Only what `model.json` knows is said; older models know less.
    """
    sentences = []
    for figures, split in ((info.test, "test"), (info.validation, "validation")):
        if (dice := _number(figures, "mean_dice")) is None:
            continue
        slices = _number(figures, "slices")
        on = f"{slices:.0f} {split} slices" if slices else f"the {split} split"
        sentences.append(f"Mean Dice {dice:.2f}{_interval(figures)} on {on}.")
        if split == "test":
            sentences += _beside(figures)
    return sentences or ["How well this model does was not recorded with it."]


def _beside(figures: dict[str, Any]) -> list[str]:
    """What the test's mean Dice has to be read with."""
    sentences = []
    if (copy := _number(figures, "copy_mean_dice")) is not None:
        sentences.append(
            "Copying the mask of the most similar training slice, which takes no network, scores "
            f"{copy:.2f} there."
        )
    found, right = (_number(figures, f"lesion_{k}") for k in ("sensitivity", "precision"))
    if found is not None and right is not None:
        sentences.append(
            f"There it marked {found:.0%} of the tumours; {right:.0%} of the regions that it "
            "marked were tumours."
        )
    return sentences


def _interval(figures: dict[str, Any]) -> str:
    low, high = (_number(figures, f"mean_dice_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f" (95% interval {low:.2f} to {high:.2f})"


def _number(figures: dict[str, Any], key: str) -> float | None:
    value = figures.get(key)
    return float(value) if isinstance(value, int | float) else None


def _add_page(app: flask.Flask, info: ModelInfo, store: Store) -> None:
    # They lie inside the page, under its nonce; none is a template.
    style, *scripts = (Markup((_HERE / name).read_text()) for name in _PARTS)

    @app.get("/")
    def page() -> str:
        # From here on the browser has a cookie, so that no name alone opens what it sends.
        begun()
        flask.g.nonce = secrets.token_urlsafe(16)
        return flask.render_template(
            "page.html",
            info=info,
            title=_title(info),
            facts=_facts(info),
            limits=_limits(info),
            most=MAX_VOLUME_BYTES,
            minutes=round(store.seconds / 60),
            nonce=flask.g.nonce,
            style=style,
            script=Markup("\n").join(scripts),
        )


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
            # From here on more than the superseded app's contract has; its clients look past it.
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


def _add_pictures(app: flask.Flask, store: Store) -> None:
    @app.get("/<any(uploads, segmented):folder>/<name>")
    def picture(folder: str, name: str) -> flask.Response:
        found = find(store, f"{folder}/{name}")
        if found is None:
            flask.abort(404, "This picture is not kept (any longer): upload it again.")
        return flask.Response(found, mimetype=_mimetype(found))


def _mimetype(picture: bytes) -> str:
    """Tells JPEG from PNG: nothing else that was decoded is kept as it came."""
    return "image/jpeg" if picture.startswith(b"\xff\xd8") else "image/png"
