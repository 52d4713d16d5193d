"""What an operator sees of the service: one log line a request, and Prometheus metrics."""

import json
import logging
import re
import secrets
import sys
import time
import traceback
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorseg.inference.predictor import Segmentation
from tumorseg.monitoring.ood import Assessment
from tumorseg.monitoring.statistics import Recorder

HEADER = "X-Request-ID"
LOG = logging.getLogger("tumorseg.requests")
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SECONDS = Histogram(
    "tumorseg_request_seconds",
    "Time from a request's head to its answer's end",
    ["route", "status"],
    buckets=_SECONDS,
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
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass
class Entry:
    """What the log will say about a request: nothing that came from a scan or names one.

    Attributes:
        id: Taken from the client's X-Request-ID if that is a short token, else made.
        route: The route's pattern, not the path that was asked for, which may hold a secret name.
        method: GET, POST, …
        status: Of the answer, whether or not anybody was left to hear it; 0 until it began.
        bytes: Of the request's body.
        slices: That were segmented.
        drawn: A number that is not in the log, by which the recorded statistics of one request's
            slices know each other.
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
    """Where one application stands; each has its own.

    Attributes:
        loaded: The model is loaded and has run once.
        failed: The model cannot be loaded.
        stopping: A signal asked the process to end; accepted requests are being answered.
        last_kept: When an answer last left its connection open, by `time.monotonic`; None if never.
    """

    loaded: bool = False
    failed: bool = False
    stopping: bool = False
    last_kept: float | None = None


_current: ContextVar[Entry | None] = ContextVar("entry", default=None)


def request_id() -> str:
    """Names the request at hand; empty outside of one."""
    entry = _current.get()
    return entry.id if entry else ""


def note_bytes(number: int) -> None:
    """Says how many bytes the body of the request at hand has."""
    if entry := _current.get():
        entry.bytes = number


def note_slice(
    found: Segmentation,
    assessment: Assessment,
    *,
    recorder: Recorder | None = None,
    digest: str = "",
) -> None:
    """Counts one segmented slice; the model's warming up, which is no request, does not count.

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


def identify(sent: str | None) -> str:
    """Names a request: as its client did in `HEADER`, if that is a short token, else anew."""
    return sent if sent and _SAFE_ID.fullmatch(sent) else secrets.token_hex(8)


def log_failure(error: BaseException, request: str | None = None) -> None:
    """Logs where an unforeseen error arose, but no message, which may quote a scan, and no path.

    Args:
        error: The error.
        request: The id of the request; that of the request at hand if None.
    """
    frames = "".join(traceback.format_tb(error.__traceback__))
    name = request_id() if request is None else request
    LOG.error(json.dumps({"request": name, "failed": type(error).__name__, "at": frames}))


def start_log() -> None:
    """Sends the log lines to standard output, and nothing else there or elsewhere."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.disabled = False
    LOG.setLevel(logging.INFO)


class Observed:
    """ASGI middleware, the outermost: names, times, counts and logs each request.

    It also puts the security headers on every answer that has none of its own.

    Args:
        app: The application behind it.
        routes: Patterns by which requests are counted, such as `/uploads/{name}`.
        state: While it says stopping, every answer closes its connection.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[str], state: State) -> None:
        self._app = app
        self._routes = [Route(path, _nothing) for path in routes]
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and looks at what is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entry = Entry(
            identify(Headers(scope=scope).get(HEADER)),
            self._route(scope),
            scope["method"],
        )
        # The pages name the request by it, too.
        scope = {**scope, "headers": _named(scope, entry.id)}
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
            _tell(entry, time.perf_counter() - began)

    def _route(self, scope: Scope) -> str:
        # Another method than the route's own is a request to that route nevertheless.
        asked: Scope = {"type": "http", "path": scope["path"], "method": "GET"}
        hits = (route.path for route in self._routes if route.matches(asked)[0] == Match.FULL)
        return next(hits, "other")


async def _nothing() -> None:
    """Stands where a route needs a function; the routes here are only compared."""


def _named(scope: Scope, name: str) -> list[tuple[bytes, bytes]]:
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers[HEADER] = name
    return headers.raw


def _tell(entry: Entry, seconds: float) -> None:
    SECONDS.labels(entry.route, str(entry.status)).observe(seconds)
    LOG.info(
        json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request": entry.id,
                "method": entry.method,
                "route": entry.route,
                "status": entry.status,
                "ms": round(1000 * seconds, 1),
                "bytes": entry.bytes,
                "slices": entry.slices,
            }
        )
    )
