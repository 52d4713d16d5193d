"""What is refused before BentoML or Flask look at a request, and for how long they may."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorseg.imaging.study import Refusal, Rejected
from tumorseg.serving import operations
from tumorseg.serving.keys import NO_KEY, brings

BUSY = Refusal(503, "The service is busy: try again in a few seconds.")
# Nobody hears it, but BentoML's timer waits for the first words of an answer, and SIGTERM for it.
GONE = Refusal(400, "The client went away before it was answered.")
_RETRY_SECONDS = "2"
_ADDRESSES = {
    404: "There is nothing at this address: /docs.json lists what there is.",
    405: "This address takes another method: /docs.json lists which.",
}
# Whoever watches the service holds no key and must get through when it is full.
OPEN = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})


def no_file(field: str) -> str:
    """Says that a request lacks its file, and the name of the form field that is for it."""
    return f"No file came with the request: send it as the multipart form field `{field}`."


def refusal(error: Refusal | Rejected) -> JSONResponse:
    """Makes the one answer that bad input gets: its status, its sentence, and the request's id."""
    answer = JSONResponse(
        {"error": error.sentence, "request_id": operations.request_id()}, error.status
    )
    if error.status == 503:
        answer.headers["Retry-After"] = _RETRY_SECONDS
    return answer


@dataclass(frozen=True)
class Limit:
    """What a route takes.

    Attributes:
        max_bytes: The largest request body.
        too_large: What a larger one is answered.
        field: The form's field for the file, where anything but `multipart/form-data` is refused.
    """

    max_bytes: int
    too_large: Refusal
    field: str | None = None


class Guard:
    """ASGI middleware: a bounded queue, bounded bodies, a time limit, and a key where one is set.

    BentoML itself reads bodies of any size, and for a body that is no form it would go and fetch
    the address that a client wrote into it.

    With a key set, everything but `OPEN` needs it, the pages too: they run the same model. As
    a page cannot send a header of its own accord, the key also counts as the password of HTTP's
    Basic authentication, for which browsers ask by themselves.

    Args:
        app: The application behind it.
        limits: By path.
        other: For every other path.
        max_queue: Requests that are read, waiting or computed at a time.
        max_memory: Bytes of request bodies that are held at a time.
        seconds: From a request's head to its answer's end.
        api_key: What every request must bring; none if None.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Mapping[str, Limit],
        other: Limit,
        max_queue: int,
        max_memory: int,
        seconds: float,
        api_key: str | None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._other = other
        self._max_queue = max_queue
        self._max_memory = max_memory
        self._seconds = seconds
        self._api_key = api_key
        self._queue = 0
        self._memory = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a refused request itself and passes every other one on."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._other)
        error = self._refuse(scope, limit)
        if error:
            answer = refusal(error)
            if error is NO_KEY:
                kind = "Bearer" if limit.field else "Basic"
                answer.headers["WWW-Authenticate"] = f'{kind} realm="tumorseg"'
            await answer(scope, receive, send)
            return
        self._queue += 1
        operations.QUEUE.inc()
        try:
            await self._admit(limit, scope, receive, send)
        finally:
            self._queue -= 1
            operations.QUEUE.dec()

    def _refuse(self, scope: Scope, limit: Limit) -> Refusal | None:
        """Judges by the request's head alone."""
        headers = Headers(scope=scope)
        if self._api_key is not None and not brings(headers.get, self._api_key):
            return NO_KEY
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").split(";")[0].strip().lower()
            if limit.field and kind != "multipart/form-data":
                return Refusal(415, no_file(limit.field))
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > limit.max_bytes:
                return limit.too_large
        return BUSY if self._queue >= self._max_queue else None

    async def _admit(self, limit: Limit, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body, where there is one, and lets the application answer, both in time."""
        end = asyncio.get_running_loop().time() + self._seconds
        if scope["method"] != "POST":
            await self._answer_in_time(end, scope, receive, send)
            return
        body = BytesIO()
        try:
            async with asyncio.timeout_at(end):
                await self._read(limit, body, receive)
            operations.note_bytes(body.tell())
            sized, again = _with_length(scope, body.tell()), _replay(body.getvalue(), receive)
            await self._answer_in_time(
                end, sized, again, send, asyncio.ensure_future(_left(receive))
            )
        except Rejected as error:
            await refusal(error)(scope, receive, send)
        except TimeoutError:
            late = f"The file did not arrive within {self._seconds:g} seconds: send it again."
            await refusal(Refusal(408, late))(scope, receive, send)
        finally:
            self._memory -= body.tell()

    async def _read(self, limit: Limit, body: BytesIO, receive: Receive) -> None:
        """Reads the body whatever length it announced."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Rejected(*GONE)
            part = message.get("body", b"")
            if body.tell() + len(part) > limit.max_bytes:
                raise Rejected(*limit.too_large)
            if self._memory + len(part) > self._max_memory:
                raise Rejected(*BUSY)
            body.write(part)
            self._memory += len(part)
            if not message.get("more_body", False):
                return

    async def _answer_in_time(
        self,
        end: float,
        scope: Scope,
        receive: Receive,
        send: Send,
        leaves: asyncio.Future[None] | None = None,
    ) -> None:
        """Runs the application; past the end answers 504 in its place.

        Returns only when the application has ended, since what it still computes in a thread goes
        on to take memory and processors, and so its place in the queue.

        Args:
            end: By the event loop's clock.
            scope: The request's.
            receive: The request's.
            send: The request's.
            leaves: Is done when the client goes away, or has all of its answer; None if nobody
                looks, as for what is not long to compute.
        """
        begun = ended = late = False

        async def pass_on(message: Message) -> None:
            nonlocal begun, ended
            if not late:
                begun = True
                ended = message["type"] == "http.response.body" and not message.get("more_body")
                await send(message)

        task = asyncio.ensure_future(self._app(scope, receive, pass_on))
        try:
            left = end - asyncio.get_running_loop().time()
            waits = {task} | ({leaves} if leaves else set())
            done, _ = await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if ended or task in done:
                await task
                return
            late = True
            task.cancel()
            if not begun:
                sentence = f"No answer was found within {self._seconds:g} seconds: send less."
                error = GONE if done else Refusal(504, sentence)
                await refusal(error)(scope, receive, send)
            await asyncio.wait({task})
        finally:
            task.cancel()
            if leaves:
                leaves.cancel()


class Worded:
    """ASGI middleware that says in a sentence what Starlette says of addresses in two words.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and replaces its answer where that is for a wrong address."""
        replaced = False

        async def answer(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                sentence = _ADDRESSES.get(message["status"])
                if sentence and headers.get("content-type", "").startswith("text/plain"):
                    replaced = True
                    said = refusal(Refusal(message["status"], sentence))
                    if "allow" in headers:  # which a 405 must name (RFC 9110)
                        said.headers["Allow"] = headers["allow"]
                    await said(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, answer)


async def _left(receive: Receive) -> None:
    """Returns when the client went away, or has all of its answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _with_length(scope: Scope, length: int) -> Scope:
    """Announces the length: of a body sent in chunks, WSGI apps would read nothing without it."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    del headers["transfer-encoding"]
    headers["content-length"] = str(length)
    return {**scope, "headers": headers.raw}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read once more, and then whatever comes after it.

    Once given it is forgotten: BentoML's timers hold on to a request until its time limit passes,
    however long ago it was answered.
    """
    left = [body]

    async def again() -> Message:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return again
