import io
import os
import re

import httpx
import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from tests.support.serving_model import disc, encode, write_model
from tests.support.web import pixels, serving, swapped
from tumorseg.imaging.decode import decode
from tumorseg.inference import segment
from tumorseg.inference.predictor import Predictor
from tumorseg.monitoring.ood import Assessment, OodDetector
from tumorseg.serving import operations
from tumorseg.serving.web import flask_app, shield
from tumorseg.serving.web.flask_app import create_app
from tumorseg.serving.web.store import Store

# For the long run: TUMORSEG_ROUNDS=200 pytest tests/integration -k sessions_at_once
ROUNDS = int(os.environ.get("TUMORSEG_ROUNDS", "5"))
DISC = encode(Image.fromarray(disc()))
JPEG = encode(Image.fromarray(disc()), "JPEG")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def client(predictor: Predictor) -> FlaskClient:
    return create_app(predictor).test_client()


def upload(client: FlaskClient, data: bytes = DISC, name: str = "scan.png") -> dict:
    answer = client.post("/upload", data={"file": (io.BytesIO(data), name)})
    assert answer.status_code == 200, answer.json
    return answer.json


def test_the_superseded_apps_contract(client, predictor):
    reply = upload(client)
    segmented = client.get(f"/segmented/{reply['segmented_img']}?1700000000")
    mask = client.get(f"/segmented/{reply['mask_img']}")
    original = client.get("/uploads/uploaded_image.jpg?1700000000")
    for answer in (segmented, mask, original):
        assert answer.status_code == 200
        assert answer.mimetype == "image/png"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    expected = predictor.segment(disc()).mask
    assert np.array_equal(pixels(original.data), disc())
    assert np.array_equal(pixels(mask.data), expected * np.uint8(255))
    painted = pixels(segmented.data).astype(int)
    assert painted.shape == (*disc().shape, 3)
    assert (painted[expected][:, 0] > painted[expected][:, 1]).all()
    assert (painted[~expected] == disc()[~expected][:, None]).all()


@pytest.mark.parametrize(
    ("data", "mimetype"),
    [
        (JPEG, "image/jpeg"),
        (encode(Image.fromarray(np.dstack([disc()] * 2 + [disc() // 2]))), "image/png"),
    ],
    ids=["JPEG", "PNG in colour"],
)
def test_the_original_is_the_very_file_that_was_sent(client, data, mimetype):
    reply = upload(client, data)
    for name in ("uploaded_image.jpg", reply["uploaded_img"]):
        answer = client.get(f"/uploads/{name}")
        assert (answer.data, answer.mimetype) == (data, mimetype)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "No file part"),
        ({"file": "text"}, "No file part"),
        ({"other": (io.BytesIO(DISC), "scan.png")}, "No file part"),
        ({"file": (io.BytesIO(b""), "")}, "No selected file"),
    ],
    ids=["nothing", "text", "another field", "no name"],
)
def test_the_superseded_apps_two_errors_come_with_status_200(client, form, error):
    answer = client.post("/upload", data=form, content_type="multipart/form-data")
    assert (answer.status_code, answer.json) == (200, {"error": error})


def test_uploads_are_never_spooled_to_a_disk(client, monkeypatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was opened")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile"):
        monkeypatch.setattr(f"tempfile.{name}", forbidden)
    monkeypatch.setattr("werkzeug.formparser.SpooledTemporaryFile", forbidden)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200)).astype(np.uint8)
    assert upload(client, encode(Image.fromarray(noise)))["width"] == 1200


def test_sessions_do_not_see_each_other(predictor):
    app = create_app(predictor)
    first, second, stranger = (app.test_client() for _ in range(3))
    upload(first)
    upload(second, encode(Image.fromarray(disc(60, 60))))
    assert pixels(first.get("/uploads/uploaded_image.jpg").data).shape == (120, 90)
    assert pixels(second.get("/uploads/uploaded_image.jpg").data).shape == (60, 60)
    answer = stranger.get("/uploads/uploaded_image.jpg")
    assert answer.status_code == 404
    assert "Set-Cookie" not in answer.headers


def test_two_sessions_at_once_always_get_their_own(predictor):
    with serving(create_app(predictor)) as url:
        assert swapped(url, predictor, ROUNDS) == []


def test_a_name_that_was_seen_elsewhere_opens_nothing(predictor):
    app = create_app(predictor)
    owner, other = app.test_client(), app.test_client()
    owner.get("/")
    other.get("/")
    reply = upload(owner)
    for path in (f"segmented/{reply['mask_img']}", f"uploads/{reply['uploaded_img']}"):
        assert owner.get(path).status_code == 200
        assert other.get(path).status_code == 404
        assert app.test_client().get(path).status_code == 404


def test_a_script_without_cookies_gets_what_it_uploaded(predictor):
    with serving(create_app(predictor)) as url:
        reply = httpx.post(f"{url}/upload", files={"file": ("scan.png", DISC)}).json()
        mask = httpx.get(f"{url}/segmented/{reply['mask_img']}")
        assert np.array_equal(pixels(mask.content) > 0, predictor.segment(disc()).mask)
        assert httpx.get(f"{url}/uploads/uploaded_image.jpg").status_code == 404


def test_the_cookie_is_for_https_only_where_it_was_set_so(predictor):
    client = create_app(predictor).test_client()
    assert "Secure" not in client.get("/").headers["Set-Cookie"]
    other = create_app(predictor).test_client()
    assert "Secure" in other.get("/", base_url="https://localhost").headers["Set-Cookie"]


def test_a_volume_is_not_for_the_superseded_route(client, monkeypatch):
    two = decode(DISC)
    two.slices.append(two.slices[0])
    monkeypatch.setattr(segment, "decode", lambda _: two)
    answer = client.post("/upload", data={"file": (io.BytesIO(b"volume"), "a.nii")})
    assert answer.status_code == 415
    assert "page" in answer.json["error"]


def test_no_name_of_a_file_is_logged(client, caplog):
    for data in (DISC, b"", DISC[:200]):
        for path in ("/upload", "/studies"):
            client.post(path, data={"file": (io.BytesIO(data), "DOE^JANE.png")})
    assert "DOE" not in caplog.text


def test_a_forged_session_opens_nothing(predictor):
    victim = create_app(predictor).test_client()
    reply = victim.post("/upload", data={"file": (io.BytesIO(DISC), "scan.png")})
    cookie = reply.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    victim.set_cookie("tumorseg", victim.get_cookie("tumorseg").value[:-4] + "AAAA")
    assert victim.get("/uploads/uploaded_image.jpg").status_code == 404


def test_names_cannot_be_guessed(client):
    replies = [upload(client, name="../../etc/passwd") for _ in range(2)]
    names = [reply[key] for reply in replies for key in ("segmented_img", "mask_img")]
    assert len(set(names)) == 4
    assert all(len(name) >= 36 for name in names)
    for path in ("/segmented/uploaded_image.jpg", "/uploads/..%2fmodel.json", "/uploads/last"):
        assert client.get(path).status_code == 404


def test_pictures_expire(predictor):
    now = [0.0]
    client = create_app(predictor, Store(600, 10**8, clock=lambda: now[0])).test_client()
    reply = upload(client)
    now[0] = 599
    assert client.get(f"/segmented/{reply['mask_img']}").status_code == 200
    now[0] = 600
    for path in (f"/segmented/{reply['mask_img']}", "/uploads/uploaded_image.jpg"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.json["error"].endswith(".")


def test_the_page_is_self_contained_and_strict(client, predictor):
    answer = client.get("/")
    text = answer.text
    assert "Research use only" in text
    assert f"version {predictor.info.version}" in text
    assert "http://" not in text
    assert "https://" not in text
    policy = answer.headers["Content-Security-Policy"]
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert text.count(f'nonce="{nonce}"') == 2
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert client.get("/").headers["Content-Security-Policy"] != policy


def test_unknown_routes_answer_json(client):
    answer = client.get("/nothing")
    assert answer.status_code == 404
    assert "error" in answer.json
    wrong = client.get("/upload")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "OPTIONS, POST")


def test_the_answer_says_what_answered_and_what_is_strange(client, predictor, monkeypatch):
    monkeypatch.setattr(OodDetector, "assess", lambda *_: Assessment(["It is unlike MRI."]))
    sent = {"file": (io.BytesIO(DISC), "photo.png")}
    answer = client.post("/upload", data=sent, headers={"X-Request-ID": "visit-7"})
    assert answer.json["model_digest"] == predictor.info.digest
    assert answer.json["request_id"] == answer.headers["X-Request-ID"] == "visit-7"
    assert answer.json["warnings"] == ["It is unlike MRI."]
    other = client.get("/nowhere", headers={"X-Request-ID": "<script>" * 20})
    assert re.fullmatch("[0-9a-f]{16}", other.json["request_id"])


def test_a_form_of_another_site_does_not_take_the_place_of_the_user_s_own(client):
    form = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    sent = {"file": (io.BytesIO(DISC), "scan.png")}
    refused = client.post("/upload", data=sent, headers=form)
    assert (refused.status_code, "Set-Cookie" in refused.headers) == (403, False)
    own = form | {"Sec-Fetch-Site": "same-origin"}
    sent = {"file": (io.BytesIO(DISC), "scan.png")}
    assert client.post("/upload", data=sent, headers=own).status_code == 200


def test_what_fails_is_logged_without_message_or_path(client, monkeypatch, caplog):
    patient = "DOE^JANE"

    def fail(*_: object) -> None:
        raise RuntimeError(patient)

    monkeypatch.setattr(flask_app, "find", fail)
    monkeypatch.setattr(operations.LOG, "propagate", True)
    answer = client.get("/segmented/SECRET.png")
    assert answer.status_code == 500
    assert answer.json["error"] == shield.FAILED.sentence
    assert "RuntimeError" in caplog.text
    assert answer.json["request_id"] in caplog.text
    assert not re.search("DOE|SECRET", caplog.text)
