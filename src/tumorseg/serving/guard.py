"""What is refused before BentoML or Flask look at a request."""

from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorseg.serving.decode import Rejected

NO_PICTURE = "No picture came with the request: send it as the multipart form field `file`."


def refusal(error: Rejected) -> JSONResponse:
    """Makes the one answer that bad input gets: its status, and its sentence under `error`."""
    return JSONResponse({"error": error.sentence}, status_code=error.status)


class Guard:
    """ASGI middleware that bounds request bodies and lets only forms through to `form_path`.

    BentoML itself reads bodies of any size, and for a body that is no form it would go and fetch
    the address that a client wrote into it.

    Args:
        app: The application behind it.
        max_bytes: The largest request body.
        too_large: What a larger one is answered.
        form_path: The route that takes `multipart/form-data` only.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, too_large: Rejected, form_path: str
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._too_large = too_large
        self._form_path = form_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a refused request itself and passes every other one on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if _announced(headers) > self._max_bytes:
            await refusal(self._too_large)(scope, receive, send)
            return
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["path"] == self._form_path and kind != b"multipart/form-data":
            error = Rejected(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, NO_PICTURE)
            await refusal(error)(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None:
            await refusal(self._too_large)(scope, receive, send)
            return
        await self._app(_with_length(scope, len(body)), _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Reads the whole body; None if it is too large, whatever length it announced."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_bytes:
                return None
            parts.append(part)
            # A client that went away sends `http.disconnect`, which has no more either.
            more = message.get("more_body", False)
        return b"".join(parts)


def _announced(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


def _with_length(scope: Scope, length: int) -> Scope:
    """Announces the length: of a body sent in chunks, WSGI apps would read nothing without it."""
    told = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name not in told]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read once more, and then whatever comes after it."""
    done = False

    async def again() -> Message:
        nonlocal done
        if done:
            return await receive()
        done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
