"""ASGI middleware that bounds requests before BentoML or Flask see them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorseg.core.service_settings import Settings
from tumorseg.imaging.study import Refusal, Rejected
from tumorseg.serving import operations
from tumorseg.serving.keys import VARIABLE, has_key, is_loopback, is_open

BUSY = Refusal(503, "The service is busy: try again in a few seconds.")
STARTING = Refusal(503, "The service is starting: try again in a few seconds.")
FAILED = Refusal(500, "The service failed: try again, and tell its operator if it fails again.")
# Nobody receives it, but BentoML waits for the beginning of an answer, and SIGTERM for BentoML.
GONE = Refusal(400, "The client went away before it was answered.")
_NO_KEY = Refusal(401, "The API key is missing or wrong: send it as the header X-API-Key.")
_OTHER_SITE = Refusal(
    403, "Another site's page sent this: list its origin in package.service.cors_origins."
)
_OTHER_NAME = Refusal(
    421,
    "The service answers under localhost, 127.0.0.1 or [::1]: use one of them, list this name in "
    f"package.service.hosts, or set {VARIABLE}.",
)
# Probes hold no key, and must get through when the queue is full.
OPEN = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})


def no_file(field: str) -> str:
    """The error for a request without its file, with the name of the form field to use."""
    return f"No file came with the request: send it as the multipart form field `{field}`."


def refusal_headers(status: int) -> dict[str, str]:
    """The headers that an error of this status needs."""
    if status == 401:
        return {"WWW-Authenticate": 'Basic realm="tumorseg"'}  # browsers then ask for a password
    return {"Retry-After": "2"} if status == 503 else {}


def refusal(error: Refusal | Rejected) -> JSONResponse:
    """The answer for an error: its status, its sentence and the request's id."""
    content = {"error": error.sentence, "request_id": operations.request_id()}
    return JSONResponse(content, error.status, refusal_headers(error.status))


@dataclass(frozen=True)
class Limit:
    """What a route takes.

    Attributes:
        max_bytes: The largest request body.
        too_large: The answer to a larger one.
        field: The form's field for the file, where anything but `multipart/form-data` is refused.
    """

    max_bytes: int
    too_large: Refusal
    field: str | None = None


class Guard:
    """ASGI middleware: a bounded queue, bounded bodies, a time limit, and who may send what.

    BentoML itself reads bodies of any size, and fetches the URL in a body that is not a form.

    - Without a key, only names of this machine and `hosts` are answered: a site can have its own
      name lead to the loopback interface, and its page would then read what is answered.
    - With a key, everything but `OPEN` needs it, the pages too.
    - POST requests of other sites' pages are refused, unless `cors_origins` lists them.

    Args:
        app: The application behind it.
        settings: The limits.
        limits: By path.
        other: For every other path.
        api_key: What every request must bring; none if None.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        limits: Mapping[str, Limit],
        other: Limit,
        api_key: str | None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._limits = limits
        self._other = other
        self._api_key = api_key
        self._any_name = api_key is not None or is_open()
        self._queue = 0
        self._memory = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a refused request itself and passes every other one on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._other)
        if error := self._refuse(scope, limit):
            await refusal(error)(scope, receive, send)
        elif scope["path"] in OPEN:
            await self._app(scope, receive, send)
        else:
            self._queue += 1
            try:
                with operations.QUEUE.track_inprogress():
                    await self._admit(limit, scope, receive, send)
            finally:
                self._queue -= 1

    def _refuse(self, scope: Scope, limit: Limit) -> Refusal | None:
        """Checks the request's head alone."""
        headers = Headers(scope=scope)
        if not (self._any_name or self._knows(headers.get("host", ""))):
            return _OTHER_NAME
        if scope["path"] in OPEN:
            return None
        if self._api_key is not None and not has_key(headers, self._api_key):
            return _NO_KEY
        if scope["method"] == "POST":
            other_site = headers.get("sec-fetch-site") == "cross-site"
            if other_site and headers.get("origin") not in self._settings.cors_origins:
                return _OTHER_SITE
            kind = headers.get("content-type", "").split(";")[0].strip().lower()
            if limit.field and kind != "multipart/form-data":
                return Refusal(415, no_file(limit.field))
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > limit.max_bytes:
                return limit.too_large
        return BUSY if self._queue >= self._settings.max_queue else None

    def _knows(self, address: str) -> bool:
        try:
            host = urlsplit(f"//{address}").hostname or ""
        except ValueError:  # a bracket is missing
            return False
        return is_loopback(host) or host in self._settings.hosts

    async def _admit(self, limit: Limit, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body and lets the application answer, both within the time limit."""
        seconds = self._settings.timeout_seconds
        end = asyncio.get_running_loop().time() + seconds
        body = BytesIO()
        try:
            async with asyncio.timeout_at(end):
                await self._read(limit, body, receive)
            operations.note_bytes(body.tell())
            sized = _with_length(scope, body.tell())
            await self._answer(end, sized, _replay(body.getvalue(), receive), receive, send)
        except Rejected as error:
            await refusal(error)(scope, receive, send)
        except TimeoutError:
            late = f"The file did not arrive within {seconds:g} seconds: send it again."
            await refusal(Refusal(408, late))(scope, receive, send)
        finally:
            self._memory -= body.tell()

    async def _read(self, limit: Limit, body: BytesIO, receive: Receive) -> None:
        """Reads the body, whatever length was announced."""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Rejected(*GONE)
            part = message.get("body", b"")
            if body.tell() + len(part) > limit.max_bytes:
                raise Rejected(*limit.too_large)
            if self._memory + len(part) > self._settings.max_memory_mib * 1024**2:
                raise Rejected(*BUSY)
            body.write(part)
            self._memory += len(part)
            more = message.get("more_body", False)

    async def _answer(
        self, end: float, scope: Scope, receive: Receive, after_body: Receive, send: Send
    ) -> None:
        """Runs the application; past `end` answers 504 in its place, and stops it.

        It is also stopped when the client goes away. Returns only when the application has ended,
        since what it still computes in a thread goes on to take memory, and so its place in the
        queue.

        Args:
            end: By the event loop's clock.
            scope: The request's.
            receive: Gives the application the body.
            after_body: Gives what follows the body: that the client goes away.
            send: The request's.
        """
        begun = complete = stopped = False

        async def pass_on(message: Message) -> None:
            nonlocal begun, complete
            if not stopped:
                begun = True
                complete = message["type"] == "http.response.body" and not message.get("more_body")
                await send(message)

        work = asyncio.ensure_future(self._app(scope, receive, pass_on))
        gone = asyncio.ensure_future(_disconnected(after_body))
        try:
            left = end - asyncio.get_running_loop().time()
            await asyncio.wait({work, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if complete or work.done():
                await work
                return
            stopped = True
            work.cancel()
            if not begun:
                seconds = self._settings.timeout_seconds
                late = f"No answer was found within {seconds:g} seconds: send less."
                await refusal(GONE if gone.done() else Refusal(504, late))(scope, receive, send)
            await asyncio.wait({work})
        finally:
            work.cancel()
            gone.cancel()


async def _disconnected(receive: Receive) -> None:
    """Returns when the client went away, or has all of its answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _with_length(scope: Scope, length: int) -> Scope:
    """Sets the length of a body that came in chunks, of which Flask would read nothing."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    del headers["transfer-encoding"]
    headers["content-length"] = str(length)
    return {**scope, "headers": headers.raw}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read once more, and then what comes after it.

    The body is then forgotten, because BentoML's timers hold on to a request until its time limit
    has passed, even if it was answered long ago.
    """
    left = [body]

    async def again() -> Message:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return again
