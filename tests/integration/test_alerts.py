"""A word by webhook, which names nobody and hides no failure."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tumorseg.core.alerts import VARIABLE, alert, sentence
from tumorseg.core.errors import InputError, StageError
from tumorseg.core.prefect_server import free_port


class Receiver:
    """A webhook on the loopback interface; it answers with the statuses given, then with 200."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.statuses: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                receiver.bodies.append(json.loads(self.rfile.read(length)))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret-token"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver(monkeypatch):
    found = Receiver()
    monkeypatch.setenv(VARIABLE, found.url)
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_what_is_posted(receiver) -> None:
    assert alert("retrain", "repro train", "stage train failed", "http://prefect/runs/1")
    (body,) = receiver.bodies
    assert body.pop("time").endswith("Z")
    assert body == {
        "flow": "retrain",
        "stage": "repro train",
        "sentence": "stage train failed",
        "run_url": "http://prefect/runs/1",
    }


def test_one_retry_and_then_only_a_word(receiver, monkeypatch, capsys) -> None:
    receiver.statuses = [503]
    assert alert("retrain", "a", "b", None) and len(receiver.bodies) == 2
    receiver.statuses = [500, 500]
    assert not alert("retrain", "a", "b", None) and len(receiver.bodies) == 4
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{free_port(0)}/secret-token")
    assert not alert("retrain", "a", "b", None)
    monkeypatch.setenv(VARIABLE, "no address: secret-token")
    assert not alert("retrain", "a", "b", None)
    said = capsys.readouterr().out
    assert said.count("could not be posted") == 3 and "secret" not in said
    monkeypatch.delenv(VARIABLE)
    assert not alert("retrain", "a", "b", None) and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StageError("stage train failed; later ones not"), "stage train failed; later ones not"),
        (InputError("data/train/Jane Doe.png: is broken"), "InputError; the run's log says more"),
        (None, "it was ended from outside; the run's log says more"),
    ],
)
def test_a_sentence_names_no_file_of_the_data(error, words) -> None:
    assert sentence(error) == words
