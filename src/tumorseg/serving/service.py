"""The BentoML service: an API for programs, and the Flask app's page for people."""

import logging
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio.to_thread
import bentoml
import click
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tumorseg.core.errors import InputError
from tumorseg.core.service_settings import Settings, load_settings
from tumorseg.imaging.study import (
    MAX_BYTES,
    MAX_VOLUME_BYTES,
    TOO_MANY_BYTES,
    TOO_MANY_VOLUME_BYTES,
    Refusal,
    Rejected,
)
from tumorseg.inference.answers import BatchAnswer, ModelVersion, SegmentAnswer, Version
from tumorseg.inference.predictor import Predictor, load_info
from tumorseg.monitoring.ood import OodDetector
from tumorseg.monitoring.statistics import Recorder
from tumorseg.serving import openapi, operations, pages
from tumorseg.serving.endpoints import Endpoints, answered
from tumorseg.serving.forms import BatchForm, PictureForm, VolumeForm, flag, given
from tumorseg.serving.guard import STARTING, Guard, Limit, refusal
from tumorseg.serving.keys import VARIABLE, check_reach
from tumorseg.serving.web.flask_app import create_app
from tumorseg.serving.web.store import Store

_SETTINGS = Path(__file__).resolve().parents[2] / "service.json"
_BATCH_BYTES = 128 * 1024 * 1024
_OVERHEAD = 64 * 1024  # what a form adds to the files themselves
_TOO_MANY_FILES = Refusal(
    413, f"The files have more than {_BATCH_BYTES // 1024**2} MiB together: send fewer."
)
_LIMITS = {
    "/segment": Limit(MAX_BYTES + _OVERHEAD, TOO_MANY_BYTES, "file"),
    "/segment/batch": Limit(_BATCH_BYTES + _OVERHEAD, _TOO_MANY_FILES, "files"),
    "/segment/volume": Limit(MAX_VOLUME_BYTES + _OVERHEAD, TOO_MANY_VOLUME_BYTES, "file"),
    "/studies": Limit(MAX_VOLUME_BYTES + _OVERHEAD, TOO_MANY_VOLUME_BYTES),
}
_OTHER = Limit(MAX_BYTES + _OVERHEAD, TOO_MANY_BYTES)
# The addresses outside of Flask, and their method.
_METHODS = {
    "/segment": "POST",
    "/segment/batch": "POST",
    "/segment/volume": "POST",
    "/version": "GET",
    "/docs.json": "GET",
    "/livez": "GET",
    "/readyz": "GET",
    "/healthz": "GET",
    "/metrics": "GET",
}


def model_folder() -> Path:
    """The model's folder: `TUMORSEG_MODEL` if set, else `model` beside the package."""
    named = os.environ.get("TUMORSEG_MODEL")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "model"


class Application:
    """One application of the service; several in a process share no state.

    Args:
        settings: The limits.

    Attributes:
        settings: As given.
        state: Whether it is loaded, failed or stopping.
        pages: The Flask app, once the model is loaded.
        store: The page's pictures and studies.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = operations.State()
        self.pages = pages.Pages()
        self.store = Store(max_bytes=settings.page_memory_mib * 1024 * 1024)
        self._endpoints: Endpoints | None = None
        self._recorder: Recorder | None = None

    def start(self) -> None:
        """Loads the model in a thread, while the event loop answers the probes."""
        operations.start_log()
        operations.delay_sigterm(self.state)
        self._recorder = Recorder.from_environment(self.settings.statistics_rows)
        threading.Thread(target=self._load, name="load", daemon=True).start()

    def assemble(self) -> tuple[Endpoints, Any]:
        """Loads the model and makes the API and the Flask app that run it.

        Raises:
            InputError: If the model's folder is broken.
        """
        predictor = Predictor(model_folder(), self.settings.onnx_threads)
        digest = predictor.info.digest
        observe = partial(operations.note_slice, recorder=self._recorder, digest=digest)
        detector = OodDetector(predictor.info.inputs)
        endpoints = Endpoints(predictor, detector, self.settings, observe)
        return endpoints, create_app(
            predictor,
            store=self.store,
            observe=observe,
            segment=pages.joining(endpoints.slices),
            volumes=self.settings.max_volumes,
            origins=self.settings.cors_origins,
        )

    def _load(self) -> None:
        try:
            endpoints, app = self.assemble()
        except Exception as error:
            if isinstance(error, InputError):
                logging.getLogger("bentoml").error("%s", error)
            else:
                operations.log_failure(error)
            self.state.failed = True
        else:
            # However many volumes there are, these threads remain for pictures and the page.
            self.pages.open(app, self.settings.threads + self.settings.max_volumes)
            self._endpoints = endpoints
            self.state.loaded = True

    @property
    def endpoints(self) -> Endpoints:
        """The API; raises Rejected, 503, as long as the model is not loaded."""
        if self._endpoints is None:
            raise Rejected(*STARTING)
        return self._endpoints

    def stop(self) -> None:
        """Writes the statistics that still wait."""
        if self._recorder:
            self._recorder.close()

    def routes(self) -> list[Route]:
        """The addresses that BentoML's own application does not have."""
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        return [
            Route("/version", _version),
            Route("/docs.json", _docs),
            Route("/metrics", self._metrics),
            *(Route(path, self.pages) for path in pages.PATHS),
            Route("/{rest:path}", _nothing_there, methods=methods),
        ]

    def middleware(self) -> list[tuple[Any, dict[str, Any]]]:
        """ASGI middleware with its options, the outermost first."""
        routes = [*_METHODS, *pages.PATHS]
        layers: list[tuple[Any, dict[str, Any]]] = [
            (operations.Observed, {"routes": routes, "state": self.state})
        ]
        if self.settings.cors_origins:
            cors = {
                "allow_origins": self.settings.cors_origins,
                "allow_credentials": True,
                "allow_methods": ["GET", "POST", "DELETE"],
                "allow_headers": ["Authorization", "X-API-Key", "X-Request-ID"],
                "expose_headers": list(openapi.HEADERS),
            }
            layers.append((CORSMiddleware, cors))
        guard = {
            "settings": self.settings,
            "limits": _LIMITS,
            "other": _OTHER,
            "api_key": os.environ.get(VARIABLE) or None,
        }
        return [*layers, (Guard, guard)]

    async def _metrics(self, _: Request) -> Response:
        """Answers `/metrics`; there is one worker, so that its own figures are all."""
        operations.KEPT.set(self.store.held)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _version(_: Request) -> Response:
    """Answers `/version`."""
    try:
        info = load_info(model_folder())
    except InputError:
        return refusal(STARTING)
    about = Version(
        bento=_bento(),
        model=ModelVersion(
            version=info.version, digest=info.digest, architecture=info.architecture
        ),
        git=info.git_sha,
        data=info.data_md5,
    )
    return Response(about.model_dump_json(), media_type="application/json")


async def _docs(_: Request) -> Response:
    """Answers `/docs.json` in place of BentoML, whose document lacks errors and examples."""
    return JSONResponse(openapi.describe(_bento()))


async def _nothing_there(request: Request) -> Response:
    """Answers requests to a wrong address, or with a wrong method to one outside of Flask."""
    allowed = _METHODS.get(request.scope["path"])
    if allowed is None:
        return refusal(Refusal(404, "There is nothing at this address: see /docs.json."))
    answer = refusal(Refusal(405, f"This address takes {allowed} only: see /docs.json."))
    answer.headers["Allow"] = allowed
    return answer


def _bento() -> str:
    context = bentoml.server_context
    return f"{context.bento_name}:{context.bento_version}"


class _Api:
    """The addresses that BentoML reads forms for."""

    application: Application

    def __init__(self) -> None:
        self.application.start()

    async def __is_alive__(self) -> bool:
        return not self.application.state.failed

    async def __is_ready__(self) -> bool:
        return self.application.state.loaded and not self.application.state.stopping

    @bentoml.on_shutdown
    async def write_statistics(self) -> None:
        """Writes the statistics that still wait; by now all that was accepted is answered."""
        await anyio.to_thread.run_sync(self.application.stop)

    @bentoml.api(route="/segment", input_spec=PictureForm, output_spec=SegmentAnswer)
    async def segment(self, file: bytes | None, probability: bool) -> SegmentAnswer:
        """Finds the tumour in one slice: JPEG, PNG or single-slice DICOM."""
        answer = await answered(
            lambda: self.application.endpoints.segment(given(file), flag(probability))
        )
        return cast(SegmentAnswer, answer)

    @bentoml.api(route="/segment/batch", input_spec=BatchForm, output_spec=BatchAnswer)
    async def segment_batch(self, files: list[bytes | None]) -> BatchAnswer:
        """Finds the tumour in each of up to 64 slices."""
        answer = await answered(lambda: self.application.endpoints.batch(files))
        return cast(BatchAnswer, answer)

    @bentoml.api(route="/segment/volume", input_spec=VolumeForm)
    async def segment_volume(self, file: bytes | None, output: str | None) -> Path:
        """Finds the tumour in a volume: DICOM (one file or a zip of a series) or NIfTI."""
        answer = await answered(lambda: self.application.endpoints.volume(given(file), output))
        return cast(Path, answer)


def create_service(application: Application | None = None) -> Any:
    """Makes a BentoML service.

    Args:
        application: The application; one with the bento's settings if None.
    """
    own = application or Application(load_settings(_SETTINGS))

    @bentoml.asgi_app(Starlette(routes=own.routes()), path="/")
    @bentoml.service(
        name="tumorseg",
        # Uploads lie in the memory of one process, so a second one would not find them.
        workers=1,
        # `Guard` answers earlier, with a sentence.
        traffic={"timeout": own.settings.timeout_seconds + 15},
        # Both would record paths, and with them the secret names of pictures.
        logging={"access": {"enabled": False}},
        metrics={"enabled": False, "namespace": "tumorseg"},
        http={"host": "127.0.0.1"},
    )
    class TumorSegmentation(_Api):
        """Finds brain tumours in MRI slices. For research use only."""

        application = own

        @bentoml.on_deployment
        def check() -> None:
            """Ends `bentoml serve` with one sentence, where BentoML would restart its worker."""
            command = click.get_current_context(silent=True)
            host = command.params.get("host") if command else None  # --host or BENTOML_HOST
            try:
                check_reach(host or "127.0.0.1")
                own.assemble()
            except InputError as error:
                raise SystemExit(f"Error: {error}") from None

    service: Any = TumorSegmentation  # the decorators make a BentoML service of the class
    for layer, options in own.middleware():
        service.add_asgi_middleware(layer, **options)
    return service


TumorSegmentation = create_service()
