"""Where the service listens and under which names it answers, with and without a key."""

import os
import subprocess
import sys

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.support.serving_model import write_model
from tests.support.serving_process import SOURCE, in_process
from tumorseg.core.errors import InputError
from tumorseg.serving.keys import OPEN_VARIABLE, VARIABLE, check_reach
from tumorseg.serving.origins import KnownHosts


@pytest.fixture(autouse=True)
def unset(monkeypatch) -> None:
    for name in (VARIABLE, OPEN_VARIABLE, "BENTOML_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_key(host) -> None:
    check_reach(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "host.example", "", "127.1.evil"])
@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({}, False),
        ({VARIABLE: ""}, False),
        ({OPEN_VARIABLE: "0"}, False),
        ({VARIABLE: "key"}, True),
        ({OPEN_VARIABLE: "1"}, True),
    ],
)
def test_others_reach_it_only_with_a_key_or_if_that_is_meant(
    monkeypatch, host, given, allowed
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if allowed:
        check_reach(host)
        return
    with pytest.raises(InputError) as caught:
        check_reach(host)
    assert VARIABLE in str(caught.value) and f"{OPEN_VARIABLE}=1" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["option", "variable"])
def test_bentoml_itself_does_not_open_it(tmp_path, way) -> None:
    model = write_model(tmp_path / "model")
    told = (["--host", "0.0.0.0"], {}) if way == "option" else ([], {"BENTOML_HOST": "0.0.0.0"})
    command = [sys.executable, "-m", "bentoml", "serve", SOURCE, "--port", "0", *told[0]]
    done = subprocess.run(
        command,
        env=os.environ | {"TUMORSEG_MODEL": str(model)} | told[1],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "0.0.0.0" in line and VARIABLE in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:3000", 200),
        ("127.0.0.1:3000", 200),
        ("[::1]:3000", 200),
        ("scans.example:3000", 200),
        ("evil.example:3000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost@evil.example", 421),
        ("192.168.0.7:3000", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_it_answers_under_known_names_only(host, status) -> None:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("scan"))])
    answer = TestClient(KnownHosts(app, hosts=["scans.example"])).get("/", headers={"Host": host})
    assert answer.status_code == status
    if status == 421:
        assert "localhost" in answer.json()["error"] and "scan" not in answer.text[:5]


def test_the_service_is_no_page_of_another_name(tmp_path) -> None:
    with in_process(write_model(tmp_path)) as client:
        for path in ("/", "/version", "/uploads/uploaded_image.jpg"):
            answer = client.get(path, headers={"Host": "evil.example"})
            assert answer.status_code == 421 and answer.json()["request_id"]
        assert client.get("/").status_code == 200
