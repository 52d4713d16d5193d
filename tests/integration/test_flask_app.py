"""The superseded app's routes, and what belongs to a browser session."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from tests.support.serving_model import disc, encode, write_model
from tests.support.web import pixels
from tumorseg.imaging.decode import decode
from tumorseg.inference import segment
from tumorseg.inference.predictor import Predictor
from tumorseg.monitoring.ood import Assessment, OodDetector
from tumorseg.serving.web.flask_app import create_app
from tumorseg.serving.web.store import Store

DISC = encode(Image.fromarray(disc()))
JPEG = encode(Image.fromarray(disc()), "JPEG")
LAST = "/uploads/uploaded_image.jpg"


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
    original = client.get(f"{LAST}?1700000000")
    for answer in (segmented, mask, original):
        assert (answer.status_code, answer.mimetype) == (200, "image/png")
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
def test_the_original_is_the_file_that_was_sent(client, data, mimetype):
    reply = upload(client, data)
    for path in (LAST, f"/uploads/{reply['uploaded_img']}"):
        answer = client.get(path)
        assert (answer.data, answer.mimetype) == (data, mimetype)


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


def test_uploads_are_never_written_to_a_disk(client, monkeypatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was opened")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile"):
        monkeypatch.setattr(f"tempfile.{name}", forbidden)
    monkeypatch.setattr("werkzeug.formparser.SpooledTemporaryFile", forbidden)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200)).astype(np.uint8)
    assert upload(client, encode(Image.fromarray(noise)))["width"] == 1200


def test_sessions_at_once_get_their_own_pictures(predictor):
    app = create_app(predictor)

    def session(number: int) -> bool:
        grey, client, own = disc(100 + 20 * number, 90), app.test_client(), True
        expected = predictor.segment(grey).mask * np.uint8(255)
        for _ in range(5):
            reply = upload(client, encode(Image.fromarray(grey)))
            own &= np.array_equal(pixels(client.get(LAST).data), grey)
            mask = client.get(f"/segmented/{reply['mask_img']}").data
            own &= np.array_equal(pixels(mask), expected)
        return own

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(session, range(4)))


def test_a_name_that_was_seen_elsewhere_opens_nothing(predictor):
    app = create_app(predictor)
    owner, other = app.test_client(), app.test_client()
    owner.get("/")
    other.get("/")
    reply = upload(owner)
    for path in (f"/segmented/{reply['mask_img']}", f"/uploads/{reply['uploaded_img']}", LAST):
        assert owner.get(path).status_code == 200
        for stranger in (other, app.test_client()):
            answer = stranger.get(path)
            assert (answer.status_code, "Set-Cookie" in answer.headers) == (404, False)


def test_a_script_without_cookies_gets_what_it_uploaded_by_name(predictor):
    app = create_app(predictor)
    reply = upload(app.test_client(use_cookies=False))
    mask = app.test_client(use_cookies=False).get(f"/segmented/{reply['mask_img']}")
    assert np.array_equal(pixels(mask.data) > 0, predictor.segment(disc()).mask)
    assert app.test_client(use_cookies=False).get(LAST).status_code == 404


def test_a_volume_is_not_for_the_superseded_route(client, monkeypatch):
    two = decode(DISC)
    two.slices.append(two.slices[0])
    monkeypatch.setattr(segment, "decode", lambda _: two)
    answer = client.post("/upload", data={"file": (io.BytesIO(b"volume"), "a.nii")})
    assert answer.status_code == 415
    assert "page" in answer.json["error"]


def test_a_forged_session_opens_nothing(client):
    upload(client)
    client.set_cookie("tumorseg", client.get_cookie("tumorseg").value[:-4] + "AAAA")
    assert client.get(LAST).status_code == 404


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
    for path in (f"/segmented/{reply['mask_img']}", LAST):
        answer = client.get(path)
        assert (answer.status_code, answer.json["error"][-1]) == (404, ".")


def test_the_answer_names_the_model_and_warns(client, predictor, monkeypatch):
    monkeypatch.setattr(OodDetector, "assess", lambda *_: Assessment(["It is unlike MRI."]))
    reply = upload(client)
    assert reply["model_digest"] == predictor.info.digest
    assert reply["warnings"] == ["It is unlike MRI."]


@pytest.mark.parametrize(
    ("test", "sentences"),
    [
        ({}, ["How well this model does was not recorded"]),
        ({"mean_dice": 0.743}, ["Mean Dice 0.74 on the test split."]),
        (
            {"slices": 215, "mean_dice": 0.743, "mean_dice_low": 0.701, "mean_dice_high": 0.779}
            | {"copy_mean_dice": 0.659, "lesion_sensitivity": 0.949, "lesion_precision": 0.788},
            [
                "Mean Dice 0.74 (95% interval 0.70 to 0.78) on 215 test slices.",
                "scores 0.66 there",
                "marked 95% of the tumours; 79% of the regions",
            ],
        ),
    ],
)
def test_the_page_shows_what_was_measured(tmp_path, test, sentences):
    model = write_model(tmp_path, test=test, validation={})
    text = " ".join(create_app(Predictor(model)).test_client().get("/").text.split())
    for sentence in [*sentences, "no warning tells a slice unlike them"]:
        assert sentence in text
