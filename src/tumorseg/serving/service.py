"""The BentoML service: an API for programs, the Flask app's page for people."""

import logging
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio.to_thread
import bentoml
import click
from bentoml._internal.configuration.containers import BentoMLContainer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tumorseg.core.errors import InputError
from tumorseg.core.service_settings import load_settings
from tumorseg.imaging.decode import (
    MAX_BYTES,
    MAX_VOLUME_BYTES,
    TOO_MANY_BYTES,
    TOO_MANY_VOLUME_BYTES,
    Refusal,
    Rejected,
)
from tumorseg.inference.answers import BatchAnswer, ModelVersion, SegmentAnswer, Version
from tumorseg.inference.predictor import Predictor, load_info
from tumorseg.monitoring.ood import Familiarity
from tumorseg.monitoring.statistics import Recorder
from tumorseg.serving import openapi, operations, pages
from tumorseg.serving.cors import OtherOrigins
from tumorseg.serving.endpoints import Endpoints, answered
from tumorseg.serving.forms import OVERHEAD, BatchForm, PictureForm, VolumeForm, flag, given
from tumorseg.serving.guard import OPEN, Guard, Limit, Worded, refusal
from tumorseg.serving.hosts import KnownHosts
from tumorseg.serving.keys import VARIABLE, check_reach, is_open
from tumorseg.serving.shutdown import Shutdown
from tumorseg.serving.web.flask_app import create_app, model_folder
from tumorseg.serving.web.store import Store

MAX_BATCH_BYTES = 128 * 1024 * 1024
_ROOT = Path(__file__).resolve().parents[2]
_settings = load_settings(_ROOT / "service.json")
_state = operations.State()
_pages = pages.Pages()
_kept = Store(max_bytes=_settings.page_memory_mib * 1024 * 1024)
_API_PATHS = ("/segment", "/segment/batch", "/segment/volume", "/version", "/docs.json")
_LIMITS = {
    "/segment": Limit(MAX_BYTES + OVERHEAD, TOO_MANY_BYTES, "file"),
    "/segment/batch": Limit(
        MAX_BATCH_BYTES + OVERHEAD,
        Refusal(
            413, f"The files have more than {MAX_BATCH_BYTES // 1024**2} MiB together: send fewer."
        ),
        "files",
    ),
    "/segment/volume": Limit(MAX_VOLUME_BYTES + OVERHEAD, TOO_MANY_VOLUME_BYTES, "file"),
    "/studies": Limit(MAX_VOLUME_BYTES + OVERHEAD, TOO_MANY_VOLUME_BYTES),
}
# Flask judges its forms itself: clients of the superseded app look for its answers to those that
# lack a file.
_ELSEWHERE = Limit(MAX_BYTES + OVERHEAD, TOO_MANY_BYTES)


def _assemble(recorder: Recorder | None = None) -> tuple[Endpoints, Any]:
    """Loads the model and makes the API and the Flask app that run it.

    Args:
        recorder: Is given the statistics of each slice.

    Raises:
        InputError: If the model's folder is broken.
    """
    predictor = Predictor(model_folder(), _settings.onnx_threads)
    keep = partial(recorder.keep, predictor.info.digest) if recorder else None
    note = partial(operations.note_slice, keep=keep)
    endpoints = Endpoints(predictor, Familiarity(predictor.info.inputs), _settings, note)
    return endpoints, create_app(
        predictor,
        store=_kept,
        note=note,
        segment=pages.joining(endpoints.slices),
        volumes=_settings.max_volumes,
    )


async def _version(_: Request) -> Response:
    """Answers `/version`."""
    try:
        info = load_info(model_folder())
    except InputError:
        return refusal(pages.STARTING)
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
    """Answers `/docs.json` in BentoML's place, which knows neither our refusals nor examples."""
    return JSONResponse(openapi.describe(_bento()))


async def _metrics(_: Request) -> Response:
    """Answers `/metrics` with BentoML's own client, which joins the figures of its processes."""
    operations.KEPT.set(_kept.held)
    client = BentoMLContainer.metrics_client.get()
    return Response(client.generate_latest(), media_type=client.CONTENT_TYPE_LATEST)


def _host() -> str:
    """The address that `bentoml serve` is about to listen on; its worker only gets the socket."""
    command = click.get_current_context(silent=True)
    told = command.params.get("host") if command else None  # by --host or BENTOML_HOST
    return str(told or BentoMLContainer.http.host.get())


def _bento() -> str:
    context = bentoml.server_context
    return f"{context.bento_name}:{context.bento_version}"


_routes = [
    Route("/version", _version),
    Route("/docs.json", _docs),
    Route("/metrics", _metrics),
    *(Route(path, _pages) for path in pages.PATHS),
]


def _with_middleware(service: Any) -> Any:
    """Puts ours around BentoML's own application, the outermost first."""
    service.add_asgi_middleware(
        operations.Observed, routes=[*_API_PATHS, *sorted(OPEN), *pages.PATHS], state=_state
    )
    key = os.environ.get(VARIABLE) or None
    if not (key or is_open()):
        service.add_asgi_middleware(KnownHosts, hosts=_settings.hosts)
    if _settings.cors_origins:
        service.add_asgi_middleware(
            OtherOrigins,
            allow_origins=_settings.cors_origins,
            allow_credentials=True,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-ID"],
            expose_headers=list(openapi.HEADERS),
        )
    service.add_asgi_middleware(
        Guard,
        limits=_LIMITS,
        other=_ELSEWHERE,
        max_queue=_settings.max_queue,
        max_memory=_settings.max_memory_mib * 1024 * 1024,
        seconds=_settings.timeout_seconds,
        api_key=key,
    )
    service.add_asgi_middleware(Worded)
    return service


@_with_middleware
@bentoml.asgi_app(Starlette(routes=_routes), path="/")
@bentoml.service(
    name="tumorseg",
    # Uploads live in the memory of one process, so a second one would not find them.
    workers=1,
    # Ours comes first, and answers with a sentence.
    traffic={"timeout": _settings.timeout_seconds + 15},
    # Both would write down paths, and with them the secret names of pictures.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False, "namespace": "tumorseg"},
    # What runs in a container says otherwise by BENTOML_HOST.
    http={"host": "127.0.0.1"},
)
class TumorSegmentation:
    """Finds brain tumours in MRI slices. For research use only."""

    def __init__(self) -> None:
        operations.start_log()
        Shutdown(_state, _settings.timeout_seconds + 15).install()
        self._endpoints: Endpoints | None = None
        self._recorder = Recorder.from_environment(_settings.statistics_rows)
        # Beside the event loop, which meanwhile answers that it lives and is not ready.
        threading.Thread(target=self._load, name="load", daemon=True).start()

    def _load(self) -> None:
        try:
            endpoints, app = _assemble(self._recorder)
        except InputError as error:
            logging.getLogger("bentoml").error("%s", error)
            _state.failed = True
        except Exception as error:
            operations.log_failure(error)
            _state.failed = True
        else:
            # However many volumes there are, these threads remain for pictures and the page.
            _pages.open(app, _settings.threads + _settings.max_volumes)
            self._endpoints = endpoints
            _state.loaded = True

    @property
    def _open(self) -> Endpoints:
        if self._endpoints is None:
            raise Rejected(*pages.STARTING)
        return self._endpoints

    async def __is_alive__(self) -> bool:
        return not _state.failed

    async def __is_ready__(self) -> bool:
        return _state.loaded and not _state.stopping

    @bentoml.on_shutdown
    async def write_statistics(self) -> None:
        """Writes the statistics that still wait; by now all that was accepted is answered."""
        if self._recorder:
            await anyio.to_thread.run_sync(self._recorder.close)

    @bentoml.on_deployment
    def check() -> None:
        """Stops `bentoml serve` with one sentence, rather than have it restart its worker."""
        try:
            check_reach(_host())
            _assemble()
        except InputError as error:
            raise SystemExit(f"Error: {error}") from None

    @bentoml.api(route="/segment", input_spec=PictureForm, output_spec=SegmentAnswer)
    async def segment(self, file: bytes | None, probability: bool) -> SegmentAnswer:
        """Finds the tumour in one slice: JPEG, PNG or single-slice DICOM."""

        async def work() -> Response:
            return await self._open.segment(given(file), flag(probability))

        return cast(SegmentAnswer, await answered(work()))

    @bentoml.api(route="/segment/batch", input_spec=BatchForm, output_spec=BatchAnswer)
    async def segment_batch(self, files: list[bytes | None]) -> BatchAnswer:
        """Finds the tumour in each of up to 64 slices."""

        async def work() -> Response:
            return await self._open.batch(files)

        return cast(BatchAnswer, await answered(work()))

    @bentoml.api(route="/segment/volume", input_spec=VolumeForm)
    async def segment_volume(self, file: bytes | None, output: str | None) -> Path:
        """Finds the tumour in a volume: DICOM (one file or a zip of a series) or NIfTI."""

        async def work() -> Response:
            return await self._open.volume(given(file), output)

        return cast(Path, await answered(work()))
