"""SIGTERM under load: every request that was accepted is answered."""

import http.client
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.support.serving_model import disc, encode, write_model
from tests.support.serving_process import SOURCE, ready, start

pytestmark = [pytest.mark.slow, pytest.mark.long]
CLIENTS = 24


FILE = encode(Image.fromarray(disc()))
BODY = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
BODY += FILE + b"\r\n--b--\r\n"
FORM = {"Host": "localhost", "Content-Type": "multipart/form-data; boundary=b"}


class Client(threading.Thread):
    """Sends pictures until nobody listens any more, and counts the answers."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.answered = 0
        self.lost: Exception | None = None

    def run(self) -> None:
        while True:
            fresh = self.connection.sock is None
            try:
                self.connection.request("POST", "/segment", BODY, FORM)
                answer = self.connection.getresponse()
                body = answer.read()
                assert answer.status == 200, body
                self.answered += 1
            except Exception as error:
                # A new connection may be reset whose request the service has not read yet.
                self.lost = None if fresh and isinstance(error, ConnectionError) else error
                return


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server of its own: process, port and log."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    log = tmp_path / "serve.log"
    process, url = start(SOURCE, log, TUMORSEG_MODEL=str(write_model(tmp_path / "model")))
    try:
        assert ready(process, url), log.read_text()
        yield process, int(url.rpartition(":")[2]), log
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_what_was_accepted_is_answered(served):
    process, port, log = served
    clients = [Client(port) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + 120
    while (before := sum(client.answered for client in clients)) < CLIENTS:
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    for client in clients:
        client.join(60)
    assert [client.lost for client in clients if client.lost] == []
    assert 0 < before < sum(client.answered for client in clients)
    # Each picture that was segmented reached its client.
    segmented = log.read_text().count('"route": "/segment", "status": 200')
    assert segmented == sum(client.answered for client in clients)


def test_while_it_stops_it_is_not_ready_and_broken_uploads_do_not_delay_it(served):
    process, port, log = served
    paths = ("/segment", "/segment/volume", "/upload", "/studies")
    for path in paths:
        half = http.client.HTTPConnection("127.0.0.1", port)
        half.request("POST", path, BODY[:100], FORM | {"Content-Length": str(len(BODY))})
        time.sleep(0.3)
        half.close()
    probe = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    probe.request("GET", "/readyz")  # a connection that is open when the signal comes
    first = probe.getresponse()
    assert (first.status, first.read()) == (200, b"\n")
    process.send_signal(signal.SIGTERM)
    time.sleep(3)  # the client takes its time, but less than the keep-alive time
    probe.request("GET", "/readyz")
    second = probe.getresponse()
    assert second.status == 503
    assert second.headers["Connection"] == "close"
    assert process.wait(15) == 0
    for path in paths:
        assert f'"route": "{path}", "status": 400' in log.read_text()
