import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from tumorseg.imaging.study import Refusal
from tumorseg.serving import operations
from tumorseg.serving.guard import Guard, Limit
from tumorseg.serving.operations import Observed, State

FORM = {"Content-Type": "multipart/form-data; boundary=x"}
SMALL = Limit(1000, Refusal(413, "too large"), "file")
ANY = Limit(1000, Refusal(413, "too large"))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body = await request.body()
    length = request.headers.get("content-length", "none")
    await PlainTextResponse(f"{len(body)} {length}")(scope, receive, send)


def guarded(app=echo, state: State | None = None, **changes) -> httpx.AsyncClient:
    options = {"max_queue": 3, "max_memory": 2000, "seconds": 5.0, "api_key": None}
    guard = Guard(app, limits={"/form": SMALL}, other=ANY, **options | changes)
    watched = Observed(guard, routes=["/form", "/livez"], state=state or State())
    transport = httpx.ASGITransport(app=watched)
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


async def in_pieces(number: int, pause: float = 0) -> AsyncIterator[bytes]:
    for _ in range(number):
        await asyncio.sleep(pause)
        yield bytes(100)


def sleeper(seconds: float):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(seconds)
        await echo(scope, receive, send)

    return app


def test_a_body_reaches_the_application_with_its_length():
    whole, pieces = talk(
        guarded(),
        post(size=100),
        lambda client: client.post("/form", content=in_pieces(5), headers=FORM),
    )
    assert whole.text == "100 100"
    assert pieces.text == "500 500"


@pytest.mark.parametrize("path", ["/form", "/elsewhere"])
def test_bodies_are_bounded_whatever_they_announce(path):
    announced, endless = talk(
        guarded(),
        post(path, size=1001),
        lambda client: client.post(path, content=in_pieces(10**6), headers=FORM),
    )
    for answer in (announced, endless):
        assert answer.status_code == 413
        assert answer.json()["error"] == "too large"
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def test_only_forms_reach_a_form_s_address():
    refused, passed = talk(
        guarded(),
        post(headers={"Content-Type": "application/json"}),
        post("/elsewhere", headers={"Content-Type": "application/json"}),
    )
    assert refused.status_code == 415
    assert "form field `file`" in refused.json()["error"]
    assert passed.status_code == 200


def test_a_full_queue_says_when_to_try_again_and_the_probes_get_through():
    *answers, probe = talk(
        guarded(sleeper(0.2)), *[post()] * 3, get("/elsewhere"), post(), get("/livez")
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200, 503, 503]
    assert answers[3].headers["Retry-After"] == "2"
    assert "try again" in answers[3].json()["error"]
    assert probe.status_code == 200


def test_places_in_the_queue_are_given_back():
    client = guarded(max_queue=1)

    async def one_after_the_other():
        async with client:
            for _ in range(3):
                yield await post()(client)
                yield await post(size=2000)(client)

    async def statuses():
        return [answer.status_code async for answer in one_after_the_other()]

    assert asyncio.run(statuses()) == [200, 413] * 3


def test_all_bodies_together_are_bounded_and_given_back():
    client = guarded(sleeper(0.5), max_memory=250)

    async def twice():
        async with client:
            first = await asyncio.gather(*[post()(client) for _ in range(3)])
            return [answer.status_code for answer in [*first, await post()(client)]]

    assert sorted(asyncio.run(twice())[:3]) == [200, 200, 503]
    assert asyncio.run(_again(guarded(max_memory=250))) == [200] * 4


async def _again(client: httpx.AsyncClient) -> list[int]:
    async with client:
        return [(await post(size=200)(client)).status_code for _ in range(4)]


def test_what_takes_too_long_is_answered_504_and_holds_its_place_until_it_ends():
    ended = []

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(10)
        finally:  # as a thread would that cannot be stopped
            await asyncio.shield(asyncio.sleep(0.2))
            ended.append(time.monotonic())

    began = time.monotonic()
    (answer,) = talk(guarded(stubborn, seconds=0.2), post())
    assert answer.status_code == 504
    assert "within 0.2 seconds" in answer.json()["error"]
    assert 0.3 < ended[0] - began < 5


def test_a_body_that_does_not_arrive_is_answered_408():
    slow = in_pieces(9, pause=0.1)
    (answer,) = talk(
        guarded(seconds=0.2), lambda client: client.post("/form", content=slow, headers=FORM)
    )
    assert answer.status_code == 408


def leaving(app, *messages: Message, stays: float = 0.05) -> list[Message]:
    """Sends messages as a client that then goes away; returns what it was answered."""
    answered: list[Message] = []
    left = [*messages, {"type": "http.disconnect"}]

    async def receive() -> Message:
        await asyncio.sleep(0.05 if len(left) > 1 else stays)
        return left.pop(0)

    async def send(message: Message) -> None:
        answered.append(message)

    guard = Guard(
        app, limits={}, other=ANY, max_queue=1, max_memory=2000, seconds=5.0, api_key=None
    )
    asyncio.run(
        guard({"type": "http", "path": "/", "method": "POST", "headers": []}, receive, send)
    )
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
    ended = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(4)
        finally:
            ended.append(time.monotonic())

    began = time.monotonic()
    start, _ = leaving(slow, WHOLE)
    assert start["status"] == 400
    assert ended[0] - began < 2


def test_only_a_disconnect_is_taken_for_the_clients_leaving():
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.12)
        await echo(scope, receive, send)

    more = {"type": "http.request", "body": b"", "more_body": False}
    start, *_ = leaving(slow, WHOLE, more, more, stays=2.0)
    assert start["status"] == 200


def test_what_was_answered_is_finished_though_nobody_is_there_any_more():
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
@pytest.mark.parametrize("path", ["/form", "/elsewhere"])
def test_the_key_opens_all_but_the_probes(path, headers, status):
    raw = {name: value.encode() for name, value in headers.items()}
    answer, probe = talk(guarded(api_key="gehéim"), post(path, headers=raw), get("/livez"))
    assert answer.status_code == status
    assert probe.status_code == 200
    if status == 401:
        asks = answer.headers["WWW-Authenticate"]
        assert asks.startswith("Bearer" if path == "/form" else "Basic")
        assert "X-API-Key" in answer.json()["error"]


def test_every_answer_is_named_and_has_the_security_headers():
    answers = talk(guarded(), post(), post(size=2000), get("/livez"), get("/elsewhere"))
    names = {answer.headers["X-Request-ID"] for answer in answers}
    assert len(names) == 4
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


def test_the_log_names_the_pattern_and_not_the_path(capfd):
    operations.start_log()
    talk(guarded(), post("/form"), get("/uploads/secret.png"))
    lines = capfd.readouterr().out
    assert '"route": "/form", "status": 200' in lines
    assert '"bytes": 100' in lines
    assert '"route": "other"' in lines
    assert "secret" not in lines
