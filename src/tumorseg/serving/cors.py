"""What pages of other origins may do: those listed call the service as its own page does."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Receive, Scope, Send

from tumorseg.imaging.decode import Refusal
from tumorseg.serving.guard import refusal

_OTHER_SITE = Refusal(403, "Another site's page sent this: have cors_origins list its origin.")


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
