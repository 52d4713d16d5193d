"""The names under which the service answers where no key guards it."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tumorseg.imaging.decode import Refusal
from tumorseg.serving.guard import refusal
from tumorseg.serving.keys import VARIABLE, is_loopback

_ELSEWHERE = Refusal(
    421,
    "The service answers under localhost, 127.0.0.1 or [::1]: use one of them, or have "
    f"package.service.hosts list this name or {VARIABLE} hold a key.",
)


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
