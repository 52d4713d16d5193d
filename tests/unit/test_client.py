"""The client against answers that a test foresees; test_api.py has the service itself."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.serving_model import disc
from tumorseg.imaging.render import mask_png
from tumorseg.inference.answers import SliceAnswer, SliceFailure
from tumorseg.inference.client import Client, ServiceError, retry_after

MODEL = {"model_version": "3", "model_digest": "0" * 64, "architecture": "unet"}
SLICE = {
    "mask_png": base64.b64encode(mask_png(disc() > 99)).decode(),
    "width": 90,
    "height": 120,
    "area_px": 1245,
    "area_mm2": None,
    "area_fraction": 0.115,
    "confidence": 0.9,
    "contours": [[[1.0, 2.0], [3.0, 2.0], [3.0, 4.0]]],
    "warnings": [],
}
ANSWER = SLICE | MODEL | {"request_id": "r1"}
Handler = Callable[[httpx.Request], httpx.Response]


class Service:
    """Answers in turn, and keeps what was asked and for how long the client slept."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        # A response is read once; the last one is given again and again.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, **options: Any) -> Client:
        transport = httpx.MockTransport(self)
        return Client("http://service", transport=transport, sleep=self.slept.append, **options)


def busy(after: str | None = "2") -> httpx.Response:
    headers = {} if after is None else {"Retry-After": after}
    return httpx.Response(503, headers=headers, json={"error": "The service is busy."})


def test_a_slice_is_answered_with_its_types() -> None:
    service = Service(httpx.Response(200, json=ANSWER))
    with service.client(api_key="secret") as client:
        answer = client.segment(b"picture")
    assert answer.area_px == 1245 and answer.model_version == "3" and answer.request_id == "r1"
    assert answer.contours[0][1] == [3.0, 2.0] and answer.probability_png is None
    (request,) = service.requests
    assert request.method == "POST" and request.url.path == "/segment"
    assert request.headers["X-API-Key"] == "secret"
    assert b'name="file"' in request.content and b"picture" in request.content
    assert b"probability" not in request.content


def test_probabilities_are_asked_for() -> None:
    service = Service(httpx.Response(200, json=ANSWER | {"probability_png": "AAAA"}))
    assert service.client().segment(b"x", probability=True).probability_png == "AAAA"
    assert b'name="probability"\r\n\r\ntrue' in service.requests[0].content


def test_a_batch_keeps_its_order_and_its_failures() -> None:
    results = [SLICE, {"error": "The file is empty."}, SLICE | {"area_px": 7}]
    service = Service(httpx.Response(200, json=MODEL | {"request_id": "r", "results": results}))
    answer = service.client().segment_batch([b"a", b"", b"c"])
    assert [type(one) for one in answer.results] == [SliceAnswer, SliceFailure, SliceAnswer]
    assert service.requests[0].content.count(b'name="files"') == 3


def test_a_volume_comes_as_a_file() -> None:
    headers = {
        "Content-Type": "application/gzip",
        "X-Request-ID": "r9",
        "X-Model-Version": "3",
        "X-Model-Digest": "0" * 64,
        "X-Tumour-Volume-mm3": "12.500",
        "X-Warnings": json.dumps(["2 of 3 slices: odd"]),
    }
    service = Service(httpx.Response(200, headers=headers, content=b"nifti"))
    volume = service.client().segment_volume(b"x")
    assert (volume.data, volume.media_type) == (b"nifti", "application/gzip")
    assert volume.volume_mm3 == 12.5 and volume.warnings == ["2 of 3 slices: odd"]
    assert volume.request_id == "r9"


@pytest.mark.parametrize("output", [None, "seg", "nifti"])
def test_the_kind_of_a_volume_s_answer_is_asked_for(output) -> None:
    headers = {"X-Model-Version": "3", "X-Model-Digest": "0" * 64}
    service = Service(httpx.Response(200, headers=headers, content=b"mask"))
    service.client().segment_volume(b"x", output=output)
    content = service.requests[0].content
    assert (b'name="output"' in content) == (output is not None)
    assert output is None or f'name="output"\r\n\r\n{output}\r\n'.encode() in content


def test_a_caller_needs_no_network_and_no_pictures() -> None:
    heavy = "{'onnxruntime', 'cv2', 'torch', 'numpy', 'PIL', 'bentoml', 'flask'}"
    code = f"import sys, tumorseg.inference.client; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_busy_service_is_asked_again_after_its_time() -> None:
    service = Service(busy("2"), busy("5"), httpx.Response(200, json=ANSWER))
    assert service.client().segment(b"x").area_px == 1245
    assert service.slept == [2.0, 5.0]
    contents = {request.content.split(b"\r\n", 1)[1][:80] for request in service.requests}
    assert len(contents) == 1  # the file goes again each time


def test_patience_is_bounded() -> None:
    service = Service(busy("1000000"))
    with pytest.raises(ServiceError, match="busy") as caught:
        service.client().segment(b"x")
    assert caught.value.status == 503
    assert len(service.requests) == 5 and service.slept == [30.0] * 4


@pytest.mark.parametrize(
    ("sent", "seconds"), [("3", 3), ("9999", 30), ("", 1), ("soon", 1), ("-3", 1), ("nan", 1)]
)
def test_retry_after_is_a_bounded_number_of_seconds(sent: str, seconds: float) -> None:
    assert retry_after(busy(sent)) == seconds


@pytest.mark.parametrize("status", [400, 401, 413, 415, 500, 504])
def test_a_refusal_carries_the_service_s_sentence(status: int) -> None:
    body = {"error": "The file is empty.", "request_id": "r7"}
    service = Service(httpx.Response(status, json=body))
    with pytest.raises(ServiceError) as caught:
        service.client().segment(b"")
    error = caught.value
    assert (error.sentence, error.status, error.request_id) == ("The file is empty.", status, "r7")
    assert "r7" in str(error) and len(service.requests) == 1


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"error": 5}', b"\xff"])
def test_a_refusal_without_a_sentence_is_told(content: bytes) -> None:
    service = Service(httpx.Response(502, content=content, headers={"X-Request-ID": "r5"}))
    with pytest.raises(ServiceError, match="502") as caught:
        service.client().version()
    assert caught.value.request_id == "r5"


@pytest.mark.parametrize("call", ["segment", "segment_volume", "version"])
def test_a_stranger_s_answer_is_told(call: str) -> None:
    client = Service(httpx.Response(200, content=b"<html>hello</html>")).client()
    with pytest.raises(ServiceError, match="check the address"):
        getattr(client, call)(*([b"x"] if call != "version" else []))


def test_a_service_that_is_not_there_is_told() -> None:
    with pytest.raises(ServiceError, match=r"cannot be reached.*tumorseg serve") as caught:
        Service(httpx.ConnectError("refused")).client().version()
    assert caught.value.status is None


def test_a_service_that_hangs_is_told() -> None:
    client = Service(httpx.ReadTimeout("")).client(timeout=7)
    with pytest.raises(ServiceError, match="within 7 s"):
        client.version()


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://x", "http://[", "http://a:b"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ServiceError, match=r"is no address|cannot be reached"):
        Client(url).version()


def test_redirects_take_scans_nowhere() -> None:
    service = Service(httpx.Response(307, headers={"Location": "http://elsewhere/segment"}))
    with pytest.raises(ServiceError, match="307"):
        service.client().segment(b"x")
    assert len(service.requests) == 1
