"""What an operator sees of the service: one log line a request, and Prometheus metrics."""

import json
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorseg.inference.predictor import Segmentation
from tumorseg.monitoring.ood import Look
from tumorseg.serving import tracing

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

_HEADERS = {
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
    """Where the process stands.

    Attributes:
        loaded: The model is loaded and has run once.
        failed: It never will be.
        stopping: A signal asked it to end; what was accepted is being finished.
    """

    loaded: bool = False
    failed: bool = False
    stopping: bool = False


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
    found: Segmentation, look: Look, keep: Callable[[int, Segmentation, Look], None] | None = None
) -> None:
    """Counts one segmented slice; the model's warming up, which is no request, does not count.

    Args:
        found: What was found in it.
        look: What it looks like.
        keep: Is given the request's `drawn` with both, if there is a record of statistics.
    """
    if entry := _current.get():
        entry.slices += 1
        SLICES.inc()
        AREA.observe(found.area_fraction)
        UNFAMILIAR.inc(bool(look.warnings))
        if keep:
            keep(entry.drawn, found, look)


def log_failure(error: BaseException) -> None:
    """Logs where an unforeseen error of the request at hand arose."""
    tracing.log_failure(error, request_id())


def start_log() -> None:
    """Sends the log lines to standard output, and nothing else there or elsewhere."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    tracing.LOG.handlers = [handler]
    tracing.LOG.propagate = False
    tracing.LOG.disabled = False
    tracing.LOG.setLevel(logging.INFO)


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
            tracing.identify(Headers(scope=scope).get(tracing.HEADER)),
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
                headers[tracing.HEADER] = entry.id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self._state.stopping:
                    headers["Connection"] = "close"
            await send(message)

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
    headers[tracing.HEADER] = name
    return headers.raw


def _tell(entry: Entry, seconds: float) -> None:
    SECONDS.labels(entry.route, str(entry.status)).observe(seconds)
    tracing.LOG.info(
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
