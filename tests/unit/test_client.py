"""The client against a mocked service; tests/integration/test_api.py has the service itself."""

import httpx
import pytest

from tests.support.mock_service import ANSWER, MODEL, SLICE, VOLUME_HEADERS, Service
from tumorseg.inference import client as module
from tumorseg.inference.answers import SliceAnswer, SliceFailure
from tumorseg.inference.client import Client, ServiceError, retry_after


def busy(after: str) -> httpx.Response:
    body = {"error": "The service is busy.", "request_id": "r2"}
    return httpx.Response(503, headers={"Retry-After": after}, json=body)


def test_a_slice_is_answered_with_its_types() -> None:
    service = Service(httpx.Response(200, json=ANSWER | {"probability_png": "AAAA"}))
    with service.client(api_key="secret") as client:
        client.segment(b"picture")
        answer = client.segment(b"picture", probability=True)
    assert answer.area_px == 1245 and answer.model_version == "3" and answer.request_id == "r1"
    assert answer.contours[0][1] == [3.0, 2.0] and answer.probability_png == "AAAA"
    plain, asked = service.requests
    assert plain.method == "POST" and plain.url.path == "/segment"
    assert plain.headers["X-API-Key"] == "secret"
    assert b'name="file"' in plain.content and b"picture" in plain.content
    assert b"probability" not in plain.content
    assert b'name="probability"\r\n\r\ntrue' in asked.content


def test_a_batch_keeps_its_order_and_its_failures() -> None:
    results = [SLICE, {"error": "The file is empty."}, SLICE | {"area_px": 7}]
    service = Service(httpx.Response(200, json=MODEL | {"request_id": "r", "results": results}))
    answer = service.client().segment_batch([b"a", b"", b"c"])
    assert [type(one) for one in answer.results] == [SliceAnswer, SliceFailure, SliceAnswer]
    assert service.requests[0].content.count(b'name="files"') == 3


@pytest.mark.parametrize("output", [None, "seg", "nifti"])
def test_a_volume_comes_as_a_file_of_the_kind_that_is_asked_for(output) -> None:
    headers = VOLUME_HEADERS | {"X-Tumour-Volume-mm3": "12.500"}
    service = Service(httpx.Response(200, headers=headers, content=b"nifti"))
    volume = service.client().segment_volume(b"x", output=output)
    assert (volume.data, volume.media_type) == (b"nifti", "application/gzip")
    assert (volume.volume_mm3, volume.warnings, volume.request_id) == (12.5, ["odd"], "r9")
    content = service.requests[0].content
    assert (b'name="output"' in content) == (output is not None)
    assert output is None or f'name="output"\r\n\r\n{output}\r\n'.encode() in content


def test_a_busy_service_is_asked_again_a_few_times(monkeypatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    service = Service(busy("2"), busy("5"), httpx.Response(200, json=ANSWER))
    assert service.client().segment(b"x").area_px == 1245
    assert slept == [2.0, 5.0] and all(b"x" in request.content for request in service.requests)
    service = Service(busy("1000000"))
    with pytest.raises(ServiceError, match="busy") as caught:
        service.client().segment(b"x")
    assert caught.value.status == 503
    assert len(service.requests) == 5 and slept[2:] == [30.0] * 4


@pytest.mark.parametrize(
    ("sent", "seconds"), [("3", 3), ("9999", 30), ("", 1), ("soon", 1), ("-3", 1), ("nan", 1)]
)
def test_retry_after_is_a_bounded_number_of_seconds(sent: str, seconds: float) -> None:
    assert retry_after(busy(sent)) == seconds


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_refusal_carries_the_service_s_sentence(status: int) -> None:
    body = {"error": "The file is empty.", "request_id": "r7"}
    service = Service(httpx.Response(status, json=body))
    with pytest.raises(ServiceError) as caught:
        service.client().segment(b"")
    error = caught.value
    assert (error.sentence, error.status, error.request_id) == ("The file is empty.", status, "r7")
    assert "r7" in str(error) and len(service.requests) == 1


@pytest.mark.parametrize("status", [200, 502])
@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"error": 5}', b"\xff"])
def test_answers_of_something_else_are_refused(status: int, content: bytes) -> None:
    client = Service(httpx.Response(status, content=content)).client()
    for call in (client.version, lambda: client.segment(b"x"), lambda: client.segment_volume(b"x")):
        with pytest.raises(ServiceError, match=f"{status}.*check the address"):
            call()


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("")])
def test_a_service_that_does_not_answer_is_an_error(error: Exception) -> None:
    with pytest.raises(ServiceError, match=r"does not answer.*tumorseg serve") as caught:
        Service(error).client().version()
    assert caught.value.status is None


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://x", "http://[", "http://a:b"])
def test_invalid_addresses_are_an_error(url: str) -> None:
    with pytest.raises(ServiceError, match=r"is no address|does not answer"):
        Client(url).version()


def test_redirects_take_scans_nowhere() -> None:
    service = Service(httpx.Response(307, headers={"Location": "http://elsewhere/segment"}))
    with pytest.raises(ServiceError, match="307"):
        service.client().segment(b"x")
    assert len(service.requests) == 1
