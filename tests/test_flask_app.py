import io

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from tests.serving_model import disc, encode, write_model
from tumorseg.serving.decode import MAX_BYTES
from tumorseg.serving.flask_app import create_app
from tumorseg.serving.predictor import Predictor
from tumorseg.serving.store import Store

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


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_the_seed_apps_contract(client, predictor):
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
    ("form", "error"),
    [
        ({}, "No file part"),
        ({"file": "text"}, "No file part"),
        ({"other": (io.BytesIO(DISC), "scan.png")}, "No file part"),
        ({"file": (io.BytesIO(b""), "")}, "No selected file"),
    ],
    ids=["nothing", "text", "another field", "no name"],
)
def test_the_seed_apps_two_errors_come_with_status_200(client, form, error):
    answer = client.post("/upload", data=form, content_type="multipart/form-data")
    assert (answer.status_code, answer.json) == (200, {"error": error})


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (DISC[:300], 400),
        (b"text", 415),
        (bytes(MAX_BYTES + 1), 413),
        (bytes(MAX_BYTES + 200_000), 413),
    ],
    ids=["empty", "truncated", "wrong", "oversized file", "oversized form"],
)
def test_bad_uploads_get_a_sentence(client, data, status):
    answer = client.post("/upload", data={"file": (io.BytesIO(data), "scan.png")})
    assert answer.status_code == status
    assert list(answer.json) == ["error"]
    assert answer.json["error"].endswith(".")


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


def test_the_store_drops_the_oldest_first():
    store = Store(600, 100)
    for key in "abc":
        store.put(key, bytes(40))
    assert [store.get(key) is not None for key in "abc"] == [False, True, True]
    store.put("b", bytes(60))
    assert [store.get(key) is not None for key in "abc"] == [False, True, True]
    store.put("huge", bytes(101))
    assert len(store) == 0
    store.put("d", bytes(100))
    assert store.get("d") == bytes(100)


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
