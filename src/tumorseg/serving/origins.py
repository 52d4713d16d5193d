"""The names under which the service answers, and what pages of other origins may do."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorseg.imaging.study import Refusal
from tumorseg.serving.guard import refusal
from tumorseg.serving.keys import VARIABLE, is_loopback

_ELSEWHERE = Refusal(
    421,
    "The service answers under localhost, 127.0.0.1 or [::1]: use one of them, or have "
    f"package.service.hosts list this name or {VARIABLE} hold a key.",
)
_OTHER_SITE = Refusal(403, "Another site's page sent this: have cors_origins list its origin.")


class KnownHosts:
    """ASGI middleware that answers only under names of this machine, and under those listed.

    Any site can have its own name lead to the loopback interface. Its page would then be of the
    same origin as the service and read what the user's browser gets there.

    Args:
        app: The application behind it.
        hosts: Further names, in lower case and without a port.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request to another name."""
        if scope["type"] == "http" and not self._knows(Headers(scope=scope).get("host", "")):
            await refusal(_ELSEWHERE)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, address: str) -> bool:
        try:
            host = urlsplit(f"//{address}").hostname or ""
        except ValueError:  # a bracket is missing
            return False
        return is_loopback(host) or host in self._hosts


class OtherOrigins(CORSMiddleware):
    """ASGI middleware: CORS with the session's cookie, and pictures in the pages of those listed.

    The cookie goes with requests of a page on the same site, such as another port of localhost. It
    goes with those of another site only where it was set over HTTPS: browsers refuse
    `SameSite=None` to anything else.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses what the cookie would otherwise let another site's page send."""
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = Headers(scope=scope)
            foreign = headers.get("sec-fetch-site") == "cross-site"
            if foreign and not self.is_allowed_origin(headers.get("origin", "")):
                await refusal(_OTHER_SITE)(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """Adds to CORS's own headers what `<img>` and cookies need."""
        if message["type"] == "http.response.start" and self._is_of_a_page(request_headers):
            message["headers"] = [
                (name, _sent_along(name, value)) for name, value in message["headers"]
            ]
            MutableHeaders(scope=message)["Cross-Origin-Resource-Policy"] = "cross-origin"
        await super().send(message, send, request_headers)

    def _is_of_a_page(self, headers: Headers) -> bool:
        """Whether a page of a listed origin asks; what `<img>` sends names it as Referer only."""
        scheme, _, rest = headers.get("referer", "").partition("://")
        asking = headers.get("origin") or f"{scheme}://{rest.partition('/')[0]}"
        return self.is_allowed_origin(asking)


def _sent_along(name: bytes, value: bytes) -> bytes:
    if name.lower() == b"set-cookie" and b"; Secure" in value:
        return value.replace(b"SameSite=Lax", b"SameSite=None")
    return value
