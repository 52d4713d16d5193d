"""The Flask app among the service's routes; its slices share batches with the API's."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, cast

from a2wsgi import WSGIMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tumorseg.imaging.preprocess import Grey
from tumorseg.imaging.study import Rejected
from tumorseg.inference.predictor import Segmentation
from tumorseg.inference.segment import SegmentSlices
from tumorseg.serving.batching import Slices, to_the_end
from tumorseg.serving.guard import GONE, STARTING, refusal

# Only these paths are Flask's; a mount at `/` would also take BentoML's own.
PATHS = ("/", "/upload", "/uploads/{name}", "/segmented/{name}", "/studies", "/studies/{rest:path}")


class _Visit:
    """A request that Flask answers in a thread, while the event loop runs its slices."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._work: Future[list[Segmentation]] | None = None
        self._over = False

    def segment(self, slices: Slices, greys: Sequence[Grey]) -> list[Segmentation]:
        """Segments slices; called in Flask's thread.

        Raises:
            Rejected: If nobody waits for the answer any more, or the network is too far behind.
        """
        if not self._over:
            self._work = asyncio.run_coroutine_threadsafe(slices.segment(greys), self._loop)
            with suppress(CancelledError):
                return self._work.result()
        raise Rejected(*GONE)

    def stop(self) -> None:
        """Ends the thread's work at its next slices; called in the event loop."""
        self._over = True
        if self._work:
            self._work.cancel()


# a2wsgi runs Flask in the context of its request.
_visit: ContextVar[_Visit] = ContextVar("visit")


def joining(slices: Slices) -> SegmentSlices:
    """Makes the function by which Flask's slices share batches with those of other requests."""
    return lambda greys: _visit.get().segment(slices, greys)


class Pages:
    """Passes requests on to Flask; answers 503 until `open` is called."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    def open(self, app: Any, threads: int) -> None:
        """Takes the Flask app, and the number of threads that run it."""
        # a2wsgi declares its own, narrower types for the same WSGI and ASGI interfaces.
        self._app = cast(ASGIApp, WSGIMiddleware(app, workers=threads))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if self._app is None:
            await refusal(STARTING)(scope, receive, send)
            return
        visit = _Visit(asyncio.get_running_loop())
        _visit.set(visit)
        await to_the_end(self._app(scope, receive, send), visit.stop)
