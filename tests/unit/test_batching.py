"""Slices of several requests in one run of the network, and the limits on decoded files."""

import asyncio
import gc
import json
import threading
import time
import weakref
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.serving_model import disc, encode, write_model
from tumorseg.core.service_settings import Settings
from tumorseg.imaging.decode import decode
from tumorseg.imaging.study import Rejected, Study
from tumorseg.inference import segment
from tumorseg.inference.predictor import Predictor
from tumorseg.monitoring.ood import OodDetector
from tumorseg.serving import endpoints
from tumorseg.serving.batching import Slices
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


def test_waiting_slices_share_batches_and_get_their_own_answers():
    network = Network(0.05)
    slices = Slices(network, Settings(max_batch_size=8))

    async def rush():
        return await asyncio.gather(*(slices.each(one(n), mean) for n in range(60)))

    for number, [(grey, grid)] in enumerate(asyncio.run(rush())):
        assert grey == grid == number
    assert sum(network.batches) == 60
    assert max(network.batches) == 8
    assert len(network.batches) <= 15


def test_a_volume_keeps_its_order_and_lets_a_single_slice_pass():
    network = Network(0.02)
    slices = Slices(network, Settings(max_batch_size=4))
    volume = Study("nifti", [np.full((20, 20), n, np.uint8) for n in range(100)])

    async def both():
        whole = asyncio.ensure_future(slices.each(volume, mean))
        await asyncio.sleep(0.05)
        await slices.each(one(7), mean)
        assert not whole.done()
        return await whole

    assert [grid for _, grid in asyncio.run(both())] == list(range(100))


def test_a_queue_that_is_too_long_is_refused():
    slices = Slices(Network(0.05), Settings(max_batch_size=2, max_latency_ms=125))

    async def ask(n):
        try:
            return await slices.each(one(n), mean)
        except Rejected as error:
            return error

    async def rush():
        await ask(0)  # from this it learns how long a run takes
        return await asyncio.gather(*(ask(n) for n in range(40)))

    answers = asyncio.run(rush())
    refused = [answer for answer in answers if isinstance(answer, Rejected)]
    assert {error.status for error in refused} == {503}
    assert len(refused) < 40


def test_a_failure_of_the_network_reaches_all_of_its_batch_and_the_next_run_works():
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


class Slow:
    """Work in a thread."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()

    def __call__(self, *_: object) -> list[bytes]:
        self.begun.set()
        time.sleep(0.3)
        self.ended.set()
        return []


@pytest.mark.parametrize("where", ["decoder", "page"])
def test_cancelled_work_in_a_thread_counts_until_it_ends(where):
    slow, pages = Slow(), Pages()
    pages.open(slow, threads=1)

    async def cancel() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=pages), base_url="http://test"
        ) as client:
            slices = Slices(Network(), Settings())
            work = slices.in_thread(slow) if where == "decoder" else client.get("/")
            task = asyncio.ensure_future(work)
            await asyncio.to_thread(slow.begun.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert slow.ended.is_set()

    asyncio.run(cancel())


def test_what_a_refused_file_unpacked_to_is_freed_without_the_collector():
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
    """The pages before a slow network, its slices, and the sizes of the batches that it ran."""
    predictor = Predictor(write_model(tmp_path))
    batches, run = [], predictor.probabilities

    def slow(inputs):
        batches.append(len(inputs))
        time.sleep(0.1)
        return run(inputs)

    monkeypatch.setattr(predictor, "probabilities", slow)
    slices, pages = Slices(predictor, Settings()), Pages()
    pages.open(create_app(predictor, segment=joining(slices)), 16)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=pages), base_url="http://test")
    return client, slices, batches


def test_slices_of_the_page_share_batches_with_those_of_the_api(paged):
    client, slices, batches = paged

    def scan(number: int) -> dict:
        return {"file": ("a.png", encode(Image.fromarray(disc(80 + number, 90))))}

    async def both():
        async with client:
            paths = ("/upload", "/studies")
            sent = [client.post(path, files=scan(n)) for n in range(5) for path in paths]
            others = (slices.each(one(n), lambda _, grid: grid.mean()) for n in range(5))
            return await asyncio.gather(*sent, *others)

    answers = [found.json() for found in asyncio.run(both())[:10]]
    heights = [(found if "height" in found else found["slices"][0])["height"] for found in answers]
    assert heights == [80 + n for n in range(5) for _ in range(2)]
    assert sum(batches) == 15
    assert len(batches) <= 6


def test_a_volume_of_the_page_ends_when_its_request_does(paged, monkeypatch):
    client, _, batches = paged
    monkeypatch.setattr(segment, "decode", lambda _: Study("nifti", [disc()] * 400))

    async def ask() -> None:
        async with client:
            with pytest.raises(TimeoutError):
                sent = client.post("/studies", files={"file": ("a", b"volume")})
                await asyncio.wait_for(sent, 0.5)

    asyncio.run(ask())
    assert 0 < sum(batches) < 100


def test_the_number_of_decoded_pictures_is_bounded(tmp_path, monkeypatch):
    decoded: list[weakref.ref] = []
    most = 0

    def counted(data: bytes) -> Study:
        nonlocal most
        study = decode(data)
        decoded.append(weakref.ref(study))
        most = max(most, sum(each() is not None for each in decoded))
        return study

    monkeypatch.setattr(endpoints, "decode", counted)
    predictor = Predictor(write_model(tmp_path))
    api = endpoints.Endpoints(predictor, OodDetector(None), Settings(max_batch_size=2))
    scan = encode(Image.fromarray(disc()))

    async def rush():
        return await asyncio.gather(*(api.batch([scan] * 30) for _ in range(3)))

    for answer in asyncio.run(rush()):
        assert all("mask_png" in each for each in json.loads(answer.body)["results"])
    assert len(decoded) == 90
    assert most <= 2 * 2 + 1  # one may just be leaving
