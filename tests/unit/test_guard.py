"""What is refused before the application sees it, the time limit, and the request log."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from tumorseg.core.errors import InputError
from tumorseg.core.service_settings import Settings
from tumorseg.imaging.study import Refusal
from tumorseg.serving import operations
from tumorseg.serving.guard import Guard, Limit
from tumorseg.serving.keys import OPEN_VARIABLE, VARIABLE, check_reach
from tumorseg.serving.operations import Observed, State

FORM = {"Content-Type": "multipart/form-data; boundary=x"}
LARGEST = 400 * 1024
SMALL = Limit(LARGEST, Refusal(413, "too large"), "file")
ANY = Limit(LARGEST, Refusal(413, "too large"))


@pytest.fixture(autouse=True)
def unset(monkeypatch) -> None:
    for name in (VARIABLE, OPEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body = await request.body()
    length = request.headers.get("content-length", "none")
    await PlainTextResponse(f"{len(body)} {length}")(scope, receive, send)


def guarded(app=echo, key: str | None = None, state: State | None = None, **limits):
    """A client of an application behind the guard."""
    settings = {"max_queue": 3, "timeout_seconds": 5.0, "hosts": ["test"], **limits}
    guard = Guard(
        app, settings=Settings(**settings), limits={"/form": SMALL}, other=ANY, api_key=key
    )
    observed = Observed(guard, routes=["/form", "/livez", "/up/{name}"], state=state or State())
    transport = httpx.ASGITransport(app=observed)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def talk(client: httpx.AsyncClient, *requests: Callable[..., Awaitable[httpx.Response]]):
    """Sends requests at once and returns their answers."""

    async def all_of_them():
        async with client:
            return await asyncio.gather(*(request(client) for request in requests))

    return asyncio.run(all_of_them())


def post(path: str = "/form", size: int = 100, **options):
    headers = FORM | options.pop("headers", {})
    return lambda client: client.post(path, content=bytes(size), headers=headers, **options)


def get(path: str, **options):
    return lambda client: client.get(path, **options)


def in_pieces(number: int, pause: float = 0):
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(number):
            await asyncio.sleep(pause)
            yield bytes(100)

    return lambda client: client.post("/form", content=pieces(), headers=FORM)


def sleeper(seconds: float):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(seconds)
        await echo(scope, receive, send)

    return app


def test_a_body_reaches_the_application_with_its_length():
    whole, pieces = talk(guarded(), post(size=100), in_pieces(5))
    assert whole.text == "100 100"
    assert pieces.text == "500 500"


def test_bodies_are_bounded_whatever_length_they_announce():
    for answer in talk(
        guarded(), post(size=LARGEST + 1), post("/other", LARGEST + 1), in_pieces(10**6)
    ):
        assert answer.status_code == 413
        assert answer.json()["error"] == "too large"
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def test_a_full_queue_answers_503_and_the_probes_get_through():
    *answers, probe = talk(
        guarded(sleeper(0.2)), *[post()] * 3, get("/elsewhere"), post(), get("/livez")
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200, 503, 503]
    assert answers[3].headers["Retry-After"] == "2"
    assert "try again" in answers[3].json()["error"]
    assert probe.status_code == 200


def test_places_in_queue_and_memory_are_given_back():
    client = guarded(max_queue=3, max_memory_mib=1)

    async def several_times() -> list[int]:
        async with client:
            statuses = []
            for size in (LARGEST, LARGEST + 1, LARGEST) * 2:
                statuses.append((await post(size=size)(client)).status_code)
            return statuses

    assert asyncio.run(several_times()) == [200, 413, 200] * 2


def test_all_bodies_together_are_bounded():
    answers = talk(guarded(sleeper(0.3), max_memory_mib=1), *[post(size=LARGEST)] * 3)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503]


def test_a_late_answer_is_504_and_keeps_its_place_until_the_application_has_ended():
    ended = []

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(10)
        finally:  # as a thread would that cannot be stopped
            await asyncio.shield(asyncio.sleep(0.3))
            ended.append(time.monotonic())

    async def second(client: httpx.AsyncClient) -> httpx.Response:
        await asyncio.sleep(0.35)
        return await post()(client)

    began = time.monotonic()
    late, refused = talk(guarded(stubborn, timeout_seconds=0.2, max_queue=1), post(), second)
    assert (late.status_code, refused.status_code) == (504, 503)
    assert "within 0.2 seconds" in late.json()["error"]
    assert 0.4 < ended[0] - began < 5


def test_a_body_that_does_not_arrive_is_answered_408():
    (answer,) = talk(guarded(timeout_seconds=0.2), in_pieces(9, pause=0.1))
    assert answer.status_code == 408


def leaving(app, *messages: Message, stays: float = 0.05) -> list[Message]:
    """Sends messages as a client that then goes away; returns the answer."""
    answered: list[Message] = []
    left = [*messages, {"type": "http.disconnect"}]

    async def receive() -> Message:
        await asyncio.sleep(0.05 if len(left) > 1 else stays)
        return left.pop(0)

    async def send(message: Message) -> None:
        answered.append(message)

    guard = Guard(app, settings=Settings(), limits={}, other=ANY, api_key=None)
    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "path": "/", "method": "POST", "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return answered


PART = {"type": "http.request", "body": bytes(10), "more_body": True}
WHOLE = PART | {"more_body": False}


def test_an_upload_that_breaks_off_is_answered_so_that_no_timer_waits_for_it():
    called = []

    async def app(*_: object) -> None:
        called.append(1)

    start, _ = leaving(app, PART, PART)
    assert (start["status"], called) == (400, [])


def test_nothing_is_computed_for_a_client_that_went_away():
    began = time.monotonic()
    start, _ = leaving(sleeper(4), WHOLE)
    assert start["status"] == 400
    assert time.monotonic() - began < 2


def test_what_was_answered_is_finished_though_the_client_left():
    ended = []

    async def tidies_up(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        await asyncio.sleep(0.2)
        ended.append(1)

    start, *_ = leaving(tidies_up, WHOLE)
    assert (start["status"], ended) == (200, [1])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": "wrong"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": "gehéim"}, 200),
        ({"Authorization": "Bearer gehéim"}, 200),
        ({"Authorization": "Bearer wrong", "X-API-Key": "gehéim"}, 401),
        ({"Authorization": "Basic " + base64.b64encode("me:gehéim".encode()).decode()}, 200),
        ({"Authorization": "Basic " + base64.b64encode(b"geheim:").decode()}, 401),
        ({"Authorization": "Basic ?"}, 401),
    ],
)
def test_the_key_opens_all_but_the_probes(headers, status):
    raw = {name: value.encode() for name, value in headers.items()}
    client = guarded(key="gehéim", hosts=[])
    *answers, probe = talk(client, post(headers=raw), post("/other", headers=raw), get("/livez"))
    assert probe.status_code == 200
    for answer in answers:
        assert answer.status_code == status
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:3000", 200),
        ("127.0.0.1:3000", 200),
        ("[::1]:3000", 200),
        ("test:3000", 200),
        ("evil.example:3000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost@evil.example", 421),
        ("192.168.0.7:3000", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_without_a_key_it_answers_under_known_names_only(monkeypatch, host, status):
    for path in ("/form", "/livez"):
        (answer,) = talk(guarded(), get(path, headers={"Host": host}))
        assert answer.status_code == status
    monkeypatch.setenv(OPEN_VARIABLE, "1")
    (answer,) = talk(guarded(), get("/form", headers={"Host": host}))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("host", "environment", "allowed"),
    [
        *((host, {}, True) for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost")),
        *((host, {}, False) for host in ("0.0.0.0", "::", "192.168.0.7", "host.example", "")),
        ("127.1.evil", {}, False),
        ("0.0.0.0", {VARIABLE: ""}, False),
        ("0.0.0.0", {OPEN_VARIABLE: "0"}, False),
        ("0.0.0.0", {VARIABLE: "key"}, True),
        ("0.0.0.0", {OPEN_VARIABLE: "1"}, True),
    ],
)
def test_beyond_loopback_it_needs_a_key_or_to_be_declared_open(
    monkeypatch, host, environment, allowed
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with nullcontext() if allowed else pytest.raises(InputError, match=f"{VARIABLE}.*=1"):
        check_reach(host)


def test_every_answer_is_named_and_has_the_security_headers():
    answers = talk(guarded(), post(), post(size=LARGEST + 1), get("/livez"), get("/elsewhere"))
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == 4
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("a-B_3.x", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("a\n", False)],
)
def test_only_a_short_safe_name_is_taken_from_the_client(sent, kept):
    (answer,) = talk(guarded(), post(headers={"X-Request-ID": sent}))
    assert (answer.headers["X-Request-ID"] == sent) == kept


def test_while_stopping_every_answer_closes_its_connection():
    (before,) = talk(guarded(), post())
    (after,) = talk(guarded(state=State(stopping=True)), post())
    assert "Connection" not in before.headers
    assert after.headers["Connection"] == "close"


def test_the_log_has_the_pattern_and_not_the_path(capfd):
    operations.start_log()
    talk(guarded(), post("/form"), get("/up/secret.png"), get("/other/secret.png"))
    lines = capfd.readouterr().out
    assert '"route": "/form", "status": 200' in lines and '"bytes": 100' in lines
    assert '"route": "/up/{name}"' in lines and '"route": "other"' in lines
    assert "secret" not in lines
