"""Pages of other origins: those that are listed work with the Flask app as its own page does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from a2wsgi import WSGIMiddleware
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from tests.support.serving_model import disc, encode, write_model
from tests.support.serving_process import in_process
from tumorseg.core.service_settings import Settings
from tumorseg.inference.predictor import Predictor
from tumorseg.serving.operations import Observed, State
from tumorseg.serving.origins import OtherOrigins
from tumorseg.serving.web.flask_app import create_app

VIEWER, OTHER = "https://viewer.example", "https://other.example"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
CROSS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
FILE = {"file": ("scan.png", encode(Image.fromarray(disc())))}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pages(model: Path):
    app = OtherOrigins(
        WSGIMiddleware(create_app(Predictor(model))),
        allow_origins=[VIEWER],
        allow_credentials=True,
        allow_methods=["GET", "POST"],
        allow_headers=["X-API-Key"],
    )
    return Observed(app, routes=["/upload"], state=State())


@pytest.fixture(params=["http", "https"])
def client(request, pages) -> Iterator[TestClient]:
    with TestClient(pages, base_url=f"{request.param}://localhost") as client:
        yield client


def test_a_listed_page_may_call_and_read(client) -> None:
    answer = client.post("/upload", files=FILE, headers=CROSS | {"Origin": VIEWER})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == VIEWER
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Origin" in answer.headers["Vary"]


def test_the_cookie_crosses_sites_only_encrypted(client) -> None:
    cookie = client.post("/upload", files=FILE, headers={"Origin": VIEWER}).headers["Set-Cookie"]
    crosses = client.base_url.scheme == "https"
    assert ("; Secure" in cookie) == ("SameSite=None" in cookie) == crosses
    assert ("SameSite=Lax" in cookie) != crosses and "HttpOnly" in cookie


@pytest.mark.parametrize("origin", [None, OTHER, "null", f"{VIEWER}:444", f"{VIEWER}.evil.example"])
def test_nobody_else_gets_such_a_cookie_or_may_read(client, origin) -> None:
    answer = client.post("/upload", files=FILE, headers={"Origin": origin} if origin else {})
    assert "SameSite=Lax" in answer.headers["Set-Cookie"]
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("headers", [{"Referer": f"{VIEWER}/page?x=1"}, {"Origin": VIEWER}])
def test_its_pictures_show_in_a_listed_page(client, headers) -> None:
    client.post("/upload", files=FILE, headers={"Origin": VIEWER})
    picture = client.get("/uploads/uploaded_image.jpg", headers=CROSS | headers)
    assert picture.status_code == 200
    assert picture.headers["Cross-Origin-Resource-Policy"] == "cross-origin"


@pytest.mark.parametrize("referer", ["", OTHER, f"{VIEWER}.evil.example/", f"x/{VIEWER}", "null"])
def test_its_pictures_show_nowhere_else(client, referer) -> None:
    client.post("/upload", files=FILE)
    picture = client.get("/uploads/uploaded_image.jpg", headers={"Referer": referer})
    assert picture.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("mode", ["cors", "no-cors", "navigate"])
def test_another_site_cannot_send_in_the_user_s_name(client, mode) -> None:
    headers = CROSS | {"Sec-Fetch-Mode": mode, "Origin": OTHER}
    answer = client.post("/upload", files=FILE, headers=headers)
    assert answer.status_code == 403
    assert "cors_origins" in answer.json()["error"] and answer.json()["request_id"]


def test_a_preflight_tells_who_may(client) -> None:
    allowed = client.options("/upload", headers=ASKED | {"Origin": VIEWER})
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == VIEWER
    assert allowed.headers["Access-Control-Allow-Credentials"] == "true"
    refused = client.options("/upload", headers=ASKED | {"Origin": OTHER})
    assert refused.status_code == 400
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_by_default_there_is_none(model) -> None:
    with in_process(model) as client:
        answers = [
            client.options("/segment", headers=ASKED | {"Origin": VIEWER}),
            client.post("/segment", files=FILE, headers={"Origin": VIEWER}),
            client.post("/upload", files=FILE, headers={"Origin": VIEWER}),
        ]
    assert [answer.status_code for answer in answers[1:]] == [200, 200]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "https://*", "https://a/", "a", "null", "https://A.b"])
def test_only_an_origin_can_be_listed(origin) -> None:
    with pytest.raises(ValidationError):
        Settings(cors_origins=[origin])
