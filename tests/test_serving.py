import io
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from tests.serving_model import SIZE, disc, write_model
from tumorseg.errors import InputError
from tumorseg.preprocess import to_grid, to_input, to_native
from tumorseg.serving.decode import MAX_BYTES, MAX_SIDE, Rejected, decode
from tumorseg.serving.flask_app import create_app
from tumorseg.serving.predictor import Predictor, load_info
from tumorseg.serving.store import Store


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its few bytes do not hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


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


def test_decode_gives_the_grey_values():
    assert np.array_equal(decode(DISC), disc())
    assert decode(JPEG).shape == disc().shape
    assert np.array_equal(decode(encode(Image.fromarray(disc()).convert("RGB"))), disc())


def test_decode_stretches_sixteen_bits():
    deep = Image.fromarray(disc().astype(np.uint16) * 16)
    assert decode(encode(deep)).max() == 255


def test_decode_turns_a_picture_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encode(Image.fromarray(disc()), "JPEG", exif=exif, quality=95))
    assert turned.shape == disc().shape[::-1]


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"", 400, "empty"),
        (b"some text", 415, "neither JPEG nor PNG"),
        (encode(Image.fromarray(disc()), "GIF"), 415, "neither JPEG nor PNG"),
        (DISC[:300], 400, "damaged"),
        (DISC[:20], 400, "damaged"),
        (JPEG[: len(JPEG) // 2], 400, "damaged"),
        (DISC[:100] + bytes(200) + DISC[300:], 400, "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), 400, "damaged"),
        (b"\xff\xd8\xff" + bytes(50), 400, "damaged"),
        (DISC + bytes(MAX_BYTES), 413, "10 MiB"),
        (png_claiming(MAX_SIDE + 1, 100), 413, "4096 pixels"),
        (png_claiming(12_000, 12_000), 413, "4096 pixels"),
        (png_claiming(60_000, 60_000), 413, "4096 pixels"),
        (png_claiming(15, 100), 400, "smaller than 16"),
    ],
    ids=[
        "empty",
        "text",
        "GIF",
        "cut PNG",
        "PNG cut in its header",
        "cut JPEG",
        "overwritten PNG",
        "only PNG's signature",
        "only JPEG's signature",
        "too many bytes",
        "too wide",
        "too many pixels",
        "bomb",
        "tiny",
    ],
)
def test_decode_rejects_with_a_sentence(data, status, word, recwarn):
    with pytest.raises(Rejected) as caught:
        decode(data)
    assert caught.value.status == status
    assert word in caught.value.sentence
    assert not recwarn.list


def test_no_damage_escapes_as_another_exception():
    random = np.random.default_rng(0)
    for data in (DISC, JPEG):
        for _ in range(150):
            broken = bytearray(data)
            for position in random.integers(0, len(data), 5):
                broken[position] = random.integers(256)
            try:
                decode(bytes(broken))
            except Rejected:
                continue


def test_probability_is_the_shared_path_to_the_model_and_back(predictor):
    values = to_input(to_grid(disc(), SIZE))[0]
    expected = to_native(1 / (1 + np.exp(-4 * values)), disc().shape)
    found = predictor.probability(disc())
    assert found.shape == disc().shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_segment_describes_the_disc(predictor):
    found = predictor.segment(disc())
    assert found.mask.shape == disc().shape
    assert found.area_px == found.mask.sum()
    assert found.area_px == pytest.approx(np.pi * 20**2, rel=0.15)
    assert found.area_fraction == found.area_px / disc().size
    assert 0.5 < found.confidence <= 1
    xs, ys = np.array(max(found.contours, key=len)).T
    assert (xs.min(), xs.max()) == pytest.approx((10, 50), abs=2)
    assert (ys.min(), ys.max()) == pytest.approx((40, 80), abs=2)


def test_no_tumour_has_no_contour_and_no_confidence(tmp_path):
    strict = Predictor(write_model(tmp_path, threshold=1.0))
    found = strict.segment(np.zeros((40, 50), np.uint8))
    assert (found.area_px, found.area_fraction, found.contours) == (0, 0.0, [])
    assert found.confidence is None


def test_predictor_serves_threads(predictor):
    expected = predictor.segment(disc()).mask
    masks: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: masks.append(predictor.segment(disc()).mask))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(masks) == 8
    assert all(np.array_equal(mask, expected) for mask in masks)


def test_an_exchanged_model_is_refused(tmp_path):
    folder = write_model(tmp_path)
    wanted = load_info(folder).digest
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=f"has the digest [0-9a-f]{{64}}.* names {wanted}"):
        Predictor(folder)


def test_broken_model_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.json cannot be read"):
        load_info(tmp_path)
    with pytest.raises(InputError, match="broken at threshold"):
        load_info(write_model(tmp_path, threshold="high"))
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(InputError, match="broken at the whole file"):
        load_info(tmp_path)
    write_model(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"model\.onnx cannot be read"):
        Predictor(tmp_path)


def test_a_model_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not run"):
        Predictor(write_model(tmp_path, image_size=SIZE * 2))


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


def test_serving_never_imports_training(tmp_path: Path):
    heavy = ("torch", "lightning", "mlflow", "prefect", "dvc", "albumentations", "pandas")
    code = (
        "import sys, tumorseg.serving.service\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    environment = {
        "BENTOML_HOME": str(tmp_path),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": str(Path(__file__).parents[1] / "src"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
