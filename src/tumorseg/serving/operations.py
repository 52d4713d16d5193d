"""What an operator sees and controls: the request log, Prometheus metrics, and SIGTERM."""

import asyncio
import json
import logging
import re
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from types import FrameType

from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorseg.inference.predictor import Segmentation
from tumorseg.monitoring.ood import Assessment
from tumorseg.monitoring.statistics import Recorder

HEADER = "X-Request-ID"
LOG = logging.getLogger("tumorseg.requests")
KEEP_ALIVE_SECONDS = 5.0  # uvicorn's default, after which it closes an idle connection
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECONDS = Histogram(
    "tumorseg_request_seconds",
    "Time from a request's head to its answer's end",
    ["route", "status"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
QUEUE = Gauge(
    "tumorseg_queue_requests",
    "Requests that are read, waiting or computed now",
    multiprocess_mode="livesum",
)
KEPT = Gauge(
    "tumorseg_page_bytes",
    "What is kept of the page's pictures and studies until they expire",
    multiprocess_mode="livesum",
)
BATCH = Histogram(
    "tumorseg_batch_slices", "Slices a run of the network", buckets=(1, 2, 4, 8, 16, 32, 64)
)
AREA = Histogram(
    "tumorseg_area_fraction",
    "Share of a slice that is predicted as tumour",
    buckets=(0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
)
SLICES = Counter("tumorseg_slices", "Slices that were segmented")
UNFAMILIAR = Counter("tumorseg_unfamiliar_slices", "Slices unlike the training data")

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass
class Entry:
    """A request's log line; nothing in it comes from a scan.

    Attributes:
        id: The client's X-Request-ID if that is a short token, else a random one.
        route: The pattern of the path, since the path may hold the secret name of a picture.
        method: GET, POST, …
        status: Of the answer; 0 until it began.
        bytes: Of the request's body.
        slices: Number of slices that were segmented.
        drawn: A random number that is not logged; it groups the recorded statistics by request.
    """

    id: str
    route: str
    method: str
    status: int = 0
    bytes: int = 0
    slices: int = 0
    drawn: int = field(default_factory=lambda: secrets.randbits(48))


@dataclass
class State:
    """The state of one application.

    Attributes:
        loaded: The model is loaded and has run once.
        failed: The model cannot be loaded.
        stopping: SIGTERM came.
        last_kept: When an answer last left its connection open, by `time.monotonic`.
    """

    loaded: bool = False
    failed: bool = False
    stopping: bool = False
    last_kept: float = float("-inf")


_current: ContextVar[Entry | None] = ContextVar("entry", default=None)


def request_id() -> str:
    """The id of the current request; empty outside of one."""
    entry = _current.get()
    return entry.id if entry else ""


def note_bytes(number: int) -> None:
    """Sets the size of the current request's body in the log, in bytes."""
    if entry := _current.get():
        entry.bytes = number


def note_slice(
    found: Segmentation,
    assessment: Assessment,
    *,
    recorder: Recorder | None = None,
    digest: str = "",
) -> None:
    """Counts one segmented slice of the current request; does nothing outside of one.

    Args:
        found: The slice's mask and measures.
        assessment: Its comparison with the training data.
        recorder: Gets the slice's statistics, if there is one.
        digest: The model's, for the recorder.
    """
    if entry := _current.get():
        entry.slices += 1
        SLICES.inc()
        AREA.observe(found.area_fraction)
        UNFAMILIAR.inc(bool(assessment.warnings))
        if recorder:
            recorder.record(digest, entry.drawn, found.area_fraction, found.confidence, assessment)


def log_failure(error: BaseException) -> None:
    """Logs the type and traceback of an error, but not its message, which may quote a scan."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    LOG.error(json.dumps({"request": request_id(), "failed": type(error).__name__, "at": frames}))


def start_log() -> None:
    """Sends the log lines to standard output, and nothing else there or elsewhere."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.disabled = False
    LOG.setLevel(logging.INFO)


def delay_sigterm(state: State) -> None:
    """Passes SIGTERM on to uvicorn only when no open connection can bring another request.

    Uvicorn closes idle connections at once, although a client may just be sending on one. Until
    then requests are answered as before, but each answer closes its connection.

    Args:
        state: Gets `stopping`.
    """
    stop_server = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(stop_server):
        return  # no server runs in this process
    loop = asyncio.get_running_loop()

    def handle(number: int, _: FrameType | None) -> None:
        state.stopping = True
        idle = time.monotonic() - state.last_kept
        wait = 1 + max(0, KEEP_ALIVE_SECONDS - idle)
        loop.call_soon_threadsafe(loop.call_later, wait, stop_server, number, None)

    signal.signal(signal.SIGTERM, handle)


class Observed:
    """ASGI middleware, the outermost: names, times, counts and logs each request.

    It also sets the security headers that an answer lacks.

    Args:
        app: The application behind it.
        routes: Patterns by which requests are counted, such as `/uploads/{name}`.
        state: While it says stopping, every answer closes its connection.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[str], state: State) -> None:
        self._app = app
        self._routes = {re.sub(r"{.*?}", "*", one): one for one in routes}
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and observes its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(HEADER, "")
        path = scope["path"]
        known = (one for glob, one in self._routes.items() if fnmatchcase(path, glob))
        entry = Entry(
            id=sent if _SAFE_ID.fullmatch(sent) else secrets.token_hex(8),
            route=next(known, "other"),
            method=scope["method"],
        )
        token = _current.set(entry)
        began = time.perf_counter()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[HEADER] = entry.id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if self._state.stopping:
                    headers["Connection"] = "close"
            await send(message)
            if message["type"] == "http.response.body" and not self._state.stopping:
                self._state.last_kept = time.monotonic()

        try:
            await self._app(scope, receive, answer)
        finally:
            _current.reset(token)
            seconds = time.perf_counter() - began
            SECONDS.labels(entry.route, str(entry.status)).observe(seconds)
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request": entry.id,
                "method": entry.method,
                "route": entry.route,
                "status": entry.status,
                "ms": round(1000 * seconds, 1),
                "bytes": entry.bytes,
                "slices": entry.slices,
            }
            LOG.info(json.dumps(line))
