"""A webhook on the loopback interface."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer


@dataclass
class Webhook:
    """Its address, what it received, and the statuses of its next answers, before 200."""

    url: str
    bodies: list[dict] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Receives JSON until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(made.statuses.pop(0) if made.statuses else 200)
            self.end_headers()

    Handler.log_message = lambda *_: None
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Webhook(f"http://127.0.0.1:{server.server_port}/secret-token")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()
