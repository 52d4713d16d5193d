"""Pages of other origins: those that are listed work as the service's own page does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from tests.support.serving_model import disc, encode, write_model
from tests.support.serving_process import in_process
from tumorseg.core.service_settings import Settings

VIEWER, OTHER = "https://viewer.example", "https://other.example"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
CROSS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
FILE = {"file": ("scan.png", encode(Image.fromarray(disc())))}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def service(model) -> Iterator[TestClient]:
    with in_process(model, Settings(cors_origins=[VIEWER])) as client:
        yield client


@pytest.fixture(params=["http", "https"])
def client(request, service) -> TestClient:
    service.cookies.clear()
    service.base_url = f"{request.param}://localhost"
    return service


def test_a_listed_page_may_call_and_read(client) -> None:
    answer = client.post("/upload", files=FILE, headers=CROSS | {"Origin": VIEWER})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == VIEWER
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    cookie, https = answer.headers["Set-Cookie"], client.base_url.scheme == "https"
    assert ("; Secure" in cookie) == ("SameSite=None" in cookie) == https
    assert ("SameSite=Lax" in cookie) != https and "HttpOnly" in cookie


@pytest.mark.parametrize("origin", [None, OTHER, "null", f"{VIEWER}:444", f"{VIEWER}.evil.example"])
def test_nobody_else_gets_such_a_cookie_or_may_read(client, origin) -> None:
    answer = client.post("/upload", files=FILE, headers={"Origin": origin} if origin else {})
    assert "SameSite=Lax" in answer.headers["Set-Cookie"]
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("headers", "policy"),
    [
        ({"Referer": f"{VIEWER}/page?x=1"}, "cross-origin"),
        ({"Origin": VIEWER}, "cross-origin"),
        ({"Referer": ""}, "same-origin"),
        ({"Referer": OTHER}, "same-origin"),
        ({"Referer": f"{VIEWER}.evil.example/"}, "same-origin"),
        ({"Referer": f"x/{VIEWER}"}, "same-origin"),
    ],
)
def test_pictures_show_in_listed_pages_only(client, headers, policy) -> None:
    client.post("/upload", files=FILE)
    picture = client.get("/uploads/uploaded_image.jpg", headers=CROSS | headers)
    assert picture.status_code == 200
    assert picture.headers["Cross-Origin-Resource-Policy"] == policy


@pytest.mark.parametrize("mode", ["cors", "no-cors", "navigate"])
def test_another_site_cannot_send_in_the_user_s_name(client, mode) -> None:
    headers = CROSS | {"Sec-Fetch-Mode": mode, "Origin": OTHER}
    answer = client.post("/upload", files=FILE, headers=headers)
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (403, False)
    assert "cors_origins" in answer.json()["error"] and answer.json()["request_id"]


def test_a_preflight_tells_who_may(client) -> None:
    allowed = client.options("/upload", headers=ASKED | {"Origin": VIEWER})
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == VIEWER
    refused = client.options("/upload", headers=ASKED | {"Origin": OTHER})
    assert refused.status_code == 400
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_by_default_no_other_origin_may_read(model) -> None:
    with in_process(model) as client:
        answers = [
            client.options("/segment", headers=ASKED | {"Origin": VIEWER}),
            client.post("/segment", files=FILE, headers={"Origin": VIEWER}),
            client.post("/upload", files=FILE, headers={"Origin": VIEWER}),
            client.post("/upload", files=FILE, headers=CROSS),
        ]
    assert [answer.status_code for answer in answers[1:]] == [200, 200, 403]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "https://*", "https://a/", "a", "null", "https://A.b"])
def test_only_an_origin_can_be_listed(origin) -> None:
    with pytest.raises(ValidationError):
        Settings(cors_origins=[origin])
