"""The API in this process: BentoML's application without its server."""

import asyncio
import base64
import io
import json
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.support.serving_model import disc, encode, write_model
from tests.support.serving_process import in_process
from tumorseg.core.service_settings import Settings
from tumorseg.imaging.decode import decode
from tumorseg.imaging.preprocess import to_native
from tumorseg.imaging.study import Study
from tumorseg.inference.predictor import Predictor
from tumorseg.monitoring.ood import OodDetector
from tumorseg.serving import operations
from tumorseg.serving.endpoints import Endpoints

DISC = encode(Image.fromarray(disc()))


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.roll(disc(), (int(rng.integers(-30, 30)), int(rng.integers(-5, 25))), (0, 1))


def unpack(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor(model)


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[TestClient]:
    with in_process(model) as client:
        yield client


def test_segment_equals_the_predictor(client, predictor):
    reply = client.post("/segment", files={"file": ("scan.png", DISC)}).json()
    expected = predictor.segment(disc())
    assert np.array_equal(unpack(reply["mask_png"]), expected.mask * np.uint8(255))
    assert (reply["width"], reply["height"]) == (90, 120)
    assert reply["area_px"] == expected.area_px
    assert reply["area_mm2"] is None
    assert reply["contours"] == expected.contours
    assert reply["model_digest"] == predictor.info.digest
    assert reply["warnings"] == []
    assert "probability_png" not in reply


@pytest.mark.parametrize(
    ("sent", "given"), [("true", True), ("1", True), ("false", False), ("", False)]
)
def test_the_map_of_probabilities_comes_where_it_is_asked_for(client, predictor, sent, given):
    reply = client.post(
        "/segment", files={"file": ("scan.png", DISC)}, data={"probability": sent}
    ).json()
    assert ("probability_png" in reply) == given
    if given:
        native = to_native(predictor.segment(disc()).probability, (120, 90))
        assert np.abs(unpack(reply["probability_png"]) / 255 - native).max() <= 0.5 / 255 + 1e-6


def test_probability_must_be_a_yes_or_a_no(client):
    answer = client.post(
        "/segment", files={"file": ("scan.png", DISC)}, data={"probability": "perhaps"}
    )
    assert answer.status_code == 400
    assert "`probability`" in answer.json()["error"]


def test_a_batch_answers_in_the_order_sent_and_a_bad_file_spoils_only_its_own(client, predictor):
    pictures = [picture(seed) for seed in range(20)]
    files = [encode(Image.fromarray(pixels)) for pixels in pictures]
    files[3], files[7], files[11] = b"", b"some text", files[11][:200]
    reply = client.post("/segment/batch", files=[("files", ("x.png", f)) for f in files]).json()
    assert len(reply["results"]) == 20
    assert reply["model_version"] == predictor.info.version
    for number, (pixels, result) in enumerate(zip(pictures, reply["results"], strict=True)):
        if number in (3, 7, 11):
            assert list(result) == ["error"]
        else:
            expected = predictor.segment(pixels).mask
            assert np.array_equal(unpack(result["mask_png"]), expected * np.uint8(255))


@pytest.mark.parametrize(("number", "status"), [(0, 400), (64, 200), (65, 400)])
def test_a_batch_has_one_to_64_files(client, number, status):
    files = [("files", ("x.png", DISC))] * number or [("other", ("x.png", DISC))]
    answer = client.post("/segment/batch", files=files)
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["error"].endswith((".", "later."))


def test_masks_are_not_swapped_among_requests_at_once(client, predictor):
    def mine(seed: int) -> bool:
        pixels = picture(seed)
        bad = client.post("/segment", files={"file": ("x.png", b"\xff\xd8\xff bad")})
        files = {"file": ("x.png", encode(Image.fromarray(pixels)))}
        mask = unpack(client.post("/segment", files=files).json()["mask_png"])
        expected = predictor.segment(pixels).mask * np.uint8(255)
        return bad.status_code == 400 and np.array_equal(mask, expected)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(mine, range(48)))


def test_only_so_many_pictures_lie_decoded_at_once(predictor, monkeypatch):
    decoded: list[weakref.ref] = []
    most = 0

    def counted(data: bytes) -> Study:
        nonlocal most
        study = decode(data)
        decoded.append(weakref.ref(study))
        most = max(most, sum(each() is not None for each in decoded))
        return study

    monkeypatch.setattr("tumorseg.serving.endpoints.decode", counted)
    endpoints = Endpoints(predictor, OodDetector(None), Settings(max_batch_size=2))

    async def rush():
        return await asyncio.gather(*(endpoints.batch([DISC] * 30) for _ in range(3)))

    for answer in asyncio.run(rush()):
        assert all("mask_png" in each for each in json.loads(answer.body)["results"])
    assert len(decoded) == 90
    assert most <= 2 * 2 + 1  # one may just be leaving


def test_an_unforeseen_failure_is_a_sentence_and_its_message_is_not_logged(
    client, monkeypatch, capfd
):
    patient = "Jane"

    def broken(data: bytes) -> Study:
        raise RuntimeError(patient)

    operations.start_log()
    monkeypatch.setattr("tumorseg.serving.endpoints.decode", broken)
    answer = client.post("/segment", files={"file": ("scan.png", DISC)})
    assert answer.status_code == 500
    assert set(answer.json()) == {"error", "request_id"}
    log = capfd.readouterr()
    assert "RuntimeError" in log.out
    assert patient not in log.out + log.err


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("GET", "/none", 404),
        ("POST", "/segmented/%2e%2e%2fmodel.json", 404),
        ("GET", "/segment", 405),
        ("POST", "/version", 405),
    ],
)
def test_a_wrong_address_is_answered_with_a_sentence(client, method, address, status):
    answer = client.request(method, address)
    assert answer.status_code == status
    assert "/docs.json" in answer.json()["error"] and answer.json()["request_id"]
    assert ("Allow" in answer.headers) == (status == 405)
