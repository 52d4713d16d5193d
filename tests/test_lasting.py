"""What nobody waits for any more goes on to count until it ends."""

import asyncio
import threading
import time

import anyio
import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.test_guard import guarded, post
from tumorseg.core.service_settings import Settings
from tumorseg.serving.batching import Slices, all_or_none, to_the_end
from tumorseg.serving.pages import Pages


class Slow:
    """A piece of work in a thread."""

    def __init__(self, seconds: float = 0.5) -> None:
        self.seconds = seconds
        self.begun = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        time.sleep(self.seconds)
        self.ended.set()


def test_cancelled_work_in_a_thread_holds_its_limiter_until_it_ends():
    slow = Slow()

    async def cancelled() -> None:
        limiter = anyio.CapacityLimiter(1)
        task = asyncio.ensure_future(
            to_the_end(anyio.to_thread.run_sync(slow, limiter=limiter)),
        )
        await asyncio.to_thread(slow.begun.wait)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
        assert (limiter.borrowed_tokens, task.done()) == (1, False)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slow.ended.is_set()
        assert limiter.borrowed_tokens == 0

    asyncio.run(cancelled())


def test_the_first_failure_ends_the_others_before_it_is_raised():
    slow = Slow()

    async def waits() -> None:
        await to_the_end(asyncio.to_thread(slow))

    async def fails() -> None:
        await asyncio.to_thread(slow.begun.wait)
        raise ValueError("broken")

    async def both() -> None:
        with pytest.raises(ValueError, match="broken"):
            await all_or_none([waits(), fails()])
        assert slow.ended.is_set()

    asyncio.run(both())


def _busy_while_it_runs(app, slow: Slow) -> None:
    """A request is answered 504 early; the next finds the only place taken until the work ends."""

    async def talk() -> None:
        async with guarded(app, seconds=0.5, max_queue=1) as client:
            first = asyncio.ensure_future(post()(client))
            await asyncio.to_thread(slow.begun.wait)
            await asyncio.sleep(0.7)
            assert (await post()(client)).status_code == 503
            assert not slow.ended.is_set()
            assert (await first).status_code == 504
            assert slow.ended.is_set()

    asyncio.run(talk())


def test_a_decoder_past_its_time_keeps_its_place_in_the_queue():
    slow = Slow(2)
    slices = Slices(object(), Settings(threads=1))

    async def decodes(scope: Scope, receive: Receive, send: Send) -> None:
        await slices.in_thread(slow)

    _busy_while_it_runs(decodes, slow)


def test_a_page_past_its_time_keeps_its_place_in_the_queue():
    slow, pages = Slow(2), Pages()

    def page(environ, start_response):
        slow()
        start_response("200 OK", [])
        return [b""]

    pages.open(page, threads=1)
    _busy_while_it_runs(pages, slow)


def test_one_that_is_in_time_is_answered():
    pages = Pages()

    def page(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    pages.open(page, threads=1)

    async def talk() -> httpx.Response:
        async with guarded(pages) as client:
            return await post()(client)

    assert asyncio.run(talk()).text == "ok"
