"""The Flask app's place among the service's routes."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from typing import Any, cast
from urllib.parse import quote

from a2wsgi import WSGIMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from werkzeug.exceptions import ServiceUnavailable

from tumorseg.imaging.preprocess import Grey
from tumorseg.imaging.study import Refusal, Rejected
from tumorseg.inference.predictor import Segmentation
from tumorseg.inference.segment import SegmentSlices
from tumorseg.serving.batching import Slices, to_the_end
from tumorseg.serving.guard import GONE, refusal

STARTING = Refusal(503, "The service is starting: try again in a few seconds.")
# Only these paths are Flask's; a bare mount at `/` would also swallow BentoML's own.
PATHS = ("/", "/upload", "/uploads/{name}", "/segmented/{name}", "/studies", "/studies/{rest:path}")


class _Visit:
    """A request while Flask answers it: the way from its thread to the service's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._work: Future[list[Segmentation] | Refusal] | None = None
        self._over = False

    def found(self, slices: Slices, greys: Sequence[Grey]) -> list[Segmentation]:
        """Segments slices among those of all requests; called in Flask's thread.

        Raises:
            Rejected: If nobody waits for the answer any more.
            ServiceUnavailable: If the network is too far behind.
        """
        if self._over:
            raise Rejected(*GONE)
        self._work = asyncio.run_coroutine_threadsafe(slices.found(greys), self._loop)
        try:
            found = self._work.result()
        except CancelledError:
            raise Rejected(*GONE) from None
        if isinstance(found, Refusal):
            raise ServiceUnavailable(found.sentence)
        return found

    def stop(self) -> None:
        """Ends the thread's work at its next slices; called in the event loop."""
        self._over = True
        if self._work:
            self._work.cancel()


# a2wsgi runs Flask in the context of its request.
_visit: ContextVar[_Visit] = ContextVar("visit")


def joining(slices: Slices) -> SegmentSlices:
    """Makes what has Flask's slices share batches with those of all other requests."""

    def segment(greys: Sequence[Grey]) -> list[Segmentation]:
        return _visit.get().found(slices, greys)

    return segment


class Pages:
    """Passes requests on to Flask, once the model is loaded and the app can be made."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    def open(self, app: Any, threads: int) -> None:
        """Takes the Flask app, and that many threads to run it."""
        # a2wsgi declares its own, narrower types for the same WSGI and ASGI interfaces.
        self._app = cast(ASGIApp, WSGIMiddleware(app, workers=threads))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 503 as long as there is no app."""
        if self._app is None:
            await refusal(STARTING)(scope, receive, send)
            return
        # Only these pages read a query, and a2wsgi fails on one that is not ASCII.
        asks = scope["path"].startswith("/studies")
        query = quote(scope["query_string"], safe="%=&+;,/?:@!$'()*~-._") if asks else ""
        asked = {**scope, "query_string": query.encode("ascii")}
        visit = _Visit(asyncio.get_running_loop())
        _visit.set(visit)
        await to_the_end(self._app(asked, receive, send), visit.stop)
