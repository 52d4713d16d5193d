"""The Flask app's place among the service's routes."""

from typing import Any, cast
from urllib.parse import quote

from a2wsgi import WSGIMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tumorseg.serving.api.guard import refusal
from tumorseg.serving.api.lasting import to_the_end
from tumorseg.serving.formats.decode import Refusal

STARTING = Refusal(503, "The service is starting: try again in a few seconds.")
# Only these paths are Flask's; a bare mount at `/` would also swallow BentoML's own.
PATHS = ("/", "/upload", "/uploads/{name}", "/segmented/{name}", "/studies", "/studies/{rest:path}")


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
        await to_the_end(self._app(asked, receive, send))
