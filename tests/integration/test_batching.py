"""Slices of several requests in one run of the network; what nobody waits for counts to its end."""

import asyncio
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY
from starlette.types import Receive, Scope, Send

from tests.support.serving_model import disc, encode, write_model
from tests.support.serving_process import in_process
from tests.unit.test_guard import guarded, post
from tumorseg.core.service_settings import Settings
from tumorseg.imaging.study import Rejected, Study
from tumorseg.inference import segment
from tumorseg.inference.predictor import Predictor
from tumorseg.serving.batching import Slices
from tumorseg.serving.guard import BUSY
from tumorseg.serving.pages import Pages, joining
from tumorseg.serving.web.flask_app import create_app


class Network:
    """Takes its time, remembers its batches and answers each slice with its own mean."""

    def __init__(self, seconds: float = 0.0, fails: bool = False) -> None:
        self.seconds = seconds
        self.fails = fails
        self.batches: list[int] = []
        self.info = SimpleNamespace(image_size=8)

    def prepare(self, grey):
        return np.full((1, 8, 8), grey.mean(), np.float32)

    def probabilities(self, inputs):
        self.batches.append(len(inputs))
        time.sleep(self.seconds)
        if self.fails:
            raise RuntimeError("broken")
        return inputs[:, 0]


def one(number: int) -> Study:
    return Study("picture", [np.full((20, 20), number, np.uint8)])


def mean(grey, grid) -> tuple[float, float]:
    return float(grey.mean()), float(grid.mean())


def test_slices_that_wait_go_together_and_nobody_gets_another_s_answer():
    network = Network(0.05)
    slices = Slices(network, Settings(max_batch_size=8))

    async def rush():
        return await asyncio.gather(*(slices.each(one(n), mean) for n in range(60)))

    for number, [(grey, grid)] in enumerate(asyncio.run(rush())):
        assert grey == grid == number
    assert sum(network.batches) == 60
    assert max(network.batches) == 8
    assert len(network.batches) <= 15


def test_a_volume_keeps_its_order_and_lets_a_lone_slice_pass():
    network = Network(0.05)
    slices = Slices(network, Settings(max_batch_size=4))
    volume = Study("nifti", [np.full((20, 20), n, np.uint8) for n in range(100)])
    ended = {}

    async def timed(name, study):
        found = await slices.each(study, mean)
        ended[name] = time.monotonic()
        return found

    async def both():
        whole = asyncio.ensure_future(timed("volume", volume))
        await asyncio.sleep(0.1)
        await timed("picture", one(7))
        return await whole

    found = asyncio.run(both())
    assert [grid for _, grid in found] == list(range(100))
    assert ended["picture"] < ended["volume"] - 0.1


def test_a_queue_that_is_too_long_is_refused_with_a_sentence():
    network = Network(0.1)
    slices = Slices(network, Settings(max_batch_size=2, max_latency_ms=250))

    async def ask(n):
        try:
            return await slices.each(one(n), mean)
        except Rejected as error:
            return error

    async def rush():
        for n in range(4):  # from these it learns how long a run takes
            await ask(n)
        return await asyncio.gather(*(ask(n) for n in range(40)))

    answers = asyncio.run(rush())
    refused = [answer for answer in answers if isinstance(answer, Rejected)]
    assert refused
    assert {error.status for error in refused} == {503}
    assert len(refused) < 40


def test_a_failure_of_the_network_reaches_everybody_and_the_next_try_goes_on():
    network = Network(fails=True)
    slices = Slices(network, Settings())

    async def fail_then_work():
        failed = await asyncio.gather(
            *(slices.each(one(n), mean) for n in range(5)), return_exceptions=True
        )
        network.fails = False
        return failed, await slices.each(one(9), mean)

    failed, worked = asyncio.run(fail_then_work())
    assert all(isinstance(error, RuntimeError) for error in failed)
    assert worked == [(9.0, 9.0)]


def test_what_is_cancelled_leaves_the_rest_alone():
    network = Network(0.05)
    slices = Slices(network, Settings(max_batch_size=2))
    volume = Study("nifti", [disc()] * 200)

    async def cancel():
        task = asyncio.ensure_future(slices.each(volume, mean))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, Rejected)):
            await task
        return await slices.each(one(3), mean)

    assert asyncio.run(cancel()) == [(3.0, 3.0)]
    assert sum(network.batches) < 40


def test_what_a_refused_file_unpacked_to_is_let_go_without_the_collector():
    unpacked = []

    def refuses():
        content = np.zeros(9)  # what a weak reference can point to
        unpacked.append(weakref.ref(content))
        raise Rejected(413, "Too large.")

    async def refused() -> None:
        with pytest.raises(Rejected, match="Too large"):
            await Slices(Network(), Settings()).in_thread(refuses)

    gc.disable()
    try:
        asyncio.run(refused())
        assert unpacked[0]() is None
    finally:
        gc.enable()


@pytest.fixture
def paged(tmp_path, monkeypatch):
    """The pages before a slow network, its slices, and the batches that it ran."""
    predictor = Predictor(write_model(tmp_path))
    batches, run = [], predictor.probabilities

    def slow(inputs):
        batches.append(len(inputs))
        time.sleep(0.1)
        return run(inputs)

    monkeypatch.setattr(predictor, "probabilities", slow)
    slices, pages = Slices(predictor, Settings()), Pages()
    pages.open(create_app(predictor, segment=joining(slices)), 16)
    return pages, slices, batches


def scan(number: int) -> bytes:
    return encode(Image.fromarray(disc(80 + number, 90)))


def mean_of(grey, grid) -> float:
    return float(grid.mean())


def test_slices_of_the_page_share_batches_with_those_of_the_api(paged):
    pages, slices, batches = paged

    async def both():
        transport = httpx.ASGITransport(app=pages)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            sent = [
                client.post(path, files={"file": ("a.png", scan(n))})
                for n in range(5)
                for path in ("/upload", "/studies")
            ]
            return await asyncio.gather(*sent, *(slices.each(one(n), mean_of) for n in range(5)))

    answers = [found.json() for found in asyncio.run(both())[:10]]
    heights = [(found if "height" in found else found["slices"][0])["height"] for found in answers]
    assert heights == [80 + n for n in range(5) for _ in range(2)]
    assert sum(batches) == 15
    assert len(batches) <= 6


def test_the_service_counts_the_page_s_slices_among_its_batches(tmp_path):
    with in_process(write_model(tmp_path)) as client:
        for path in ("/segment", "/upload", "/studies"):
            before = REGISTRY.get_sample_value("tumorseg_batch_slices_sum")
            assert client.post(path, files={"file": ("a.png", scan(0))}).status_code == 200
            assert REGISTRY.get_sample_value("tumorseg_batch_slices_sum") == before + 1


def test_a_page_that_finds_the_network_too_far_behind_is_told_when_to_come_again(
    paged, monkeypatch
):
    pages, slices, _ = paged

    async def too_late(_: object) -> None:
        raise Rejected(*BUSY)

    monkeypatch.setattr(slices, "_probability", too_late)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=pages)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/upload", files={"file": ("a.png", scan(0))})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]) == (503, BUSY.sentence)
    assert int(answer.headers["Retry-After"]) > 0


def test_a_volume_past_its_time_is_not_computed_to_its_end(paged, monkeypatch):
    pages, _, batches = paged
    monkeypatch.setattr(segment, "decode", lambda _: Study("nifti", [disc()] * 400))

    async def ask() -> httpx.Response:
        async with guarded(pages, seconds=0.5) as client:
            return await client.post("/studies", files={"file": ("a", b"volume")})

    assert asyncio.run(ask()).status_code == 504
    assert 0 < sum(batches) < 100


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
