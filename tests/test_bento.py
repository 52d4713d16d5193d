import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.serving_model import disc, write_model
from tumorseg import bento
from tumorseg.errors import InputError
from tumorseg.serving.decode import MAX_BYTES
from tumorseg.serving.predictor import Predictor, load_info

pytestmark = pytest.mark.slow

REQUIREMENTS = [f"bentoml=={version('bentoml')}", f"flask=={version('flask')}"]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


DISC = png(disc())


def start(tag: str, log: Path, **more: str) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", tag, "--host", "127.0.0.1"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=os.environ | more,
            cwd=log.parent,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return process, f"http://127.0.0.1:{port}"


def status(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=2).status_code
    except httpx.HTTPError:
        return None  # nothing listens there yet


def ready(process: subprocess.Popen[bytes], url: str, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if status(f"{url}/readyz") == 200:
            return True
        time.sleep(0.2)
    return False


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("bentoml")
        patch.setenv("BENTOML_HOME", str(home))
        patch.setenv("BENTOML_DO_NOT_TRACK", "True")
        patch.delenv("TUMORSEG_MODEL", raising=False)
        yield home


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tag(home: Path, model: Path) -> str:
    return bento.build(model, requirements=REQUIREMENTS)


@pytest.fixture(scope="module")
def folder(home: Path, tag: str) -> Path:
    return home / "bentos" / tag.replace(":", "/")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "serve.log"


@pytest.fixture(scope="module")
def client(tag: str, log: Path) -> Iterator[httpx.Client]:
    process, url = start(tag, log)
    try:
        assert ready(process, url), log.read_text()
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client
    finally:
        stop(process)


def test_the_bento_holds_what_serving_needs_and_no_more(folder, model):
    held = {str(p.relative_to(folder / "src")) for p in (folder / "src").rglob("*.*")}
    assert {"tumorseg/preprocess.py", "tumorseg/serving/page.html", "model/model.onnx"} <= held
    top = {p.name for p in (folder / "src" / "tumorseg").iterdir() if p.name != "__pycache__"}
    assert top == {"__init__.py", "errors.py", "masks.py", "preprocess.py", "serving"}
    about = yaml.safe_load((folder / "bento.yaml").read_text())
    info = load_info(model)
    assert about["labels"] == {
        "version": info.version,
        "digest": info.digest,
        "run_id": info.run_id,
        "architecture": info.architecture,
    }
    assert set(REQUIREMENTS) <= set((folder / "env/python/requirements.txt").read_text().split())


def test_building_again_gives_the_same_bento(tag, folder, model, tmp_path):
    made = (folder / "bento.yaml").stat().st_mtime_ns
    assert bento.build(model, requirements=REQUIREMENTS) == tag
    assert (folder / "bento.yaml").stat().st_mtime_ns == made
    assert len([p for p in folder.parent.iterdir() if p.is_dir()]) == 1


def test_an_exchanged_model_is_not_built(home, tmp_path):
    with pytest.raises(InputError, match="digest"):
        bento.build(write_model(tmp_path, digest="0" * 64), requirements=REQUIREMENTS)


def test_segment_equals_the_predictor(client, model):
    answer = client.post("/segment", files={"file": ("scan.png", DISC, "image/png")})
    assert answer.status_code == 200
    reply = answer.json()
    expected = Predictor(model).segment(disc())
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(reply["mask_png"]))))
    assert np.array_equal(mask, expected.mask * np.uint8(255))
    assert (reply["width"], reply["height"]) == (90, 120)
    assert reply["area_px"] == expected.area_px
    assert reply["area_fraction"] == expected.area_fraction
    assert reply["contours"] == expected.contours
    info = load_info(model)
    assert (reply["model_version"], reply["model_digest"]) == (info.version, info.digest)
    assert reply["architecture"] == info.architecture


def test_the_page_and_its_upload(client):
    page = client.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "Research use only" in page.text
    reply = client.post("/upload", files={"file": ("scan.png", DISC)}).json()
    overlay = client.get(f"/segmented/{reply['segmented_img']}")
    original = client.get("/uploads/uploaded_image.jpg")
    assert Image.open(io.BytesIO(overlay.content)).size == (90, 120)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(original.content))), disc())
    stranger = httpx.get(f"{client.base_url}/uploads/uploaded_image.jpg")
    assert stranger.status_code == 404


def test_bentomls_own_routes_stay(client):
    for path in ("/livez", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200
    paths = client.get("/docs.json").json()["paths"]
    form = paths["/segment"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["format"] == "binary"
    reply = paths["/segment"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert {"mask_png", "area_px", "model_digest"} <= set(reply["properties"])


@pytest.mark.parametrize("path", ["/segment", "/upload"])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (DISC[:300], 400),
        (b"some text", 415),
        (bytes(MAX_BYTES + 1), 413),
        (bytes(3 * MAX_BYTES), 413),
    ],
    ids=["empty", "truncated", "wrong", "oversized", "huge"],
)
def test_bad_pictures_get_a_sentence(client, path, data, status):
    answer = client.post(path, files={"file": ("scan.png", data, "image/png")})
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({}, 415),
        ({"json": {"file": "http://127.0.0.1:9/scan.png"}}, 415),
        ({"content": DISC, "headers": {"Content-Type": "image/png"}}, 415),
        ({"content": b"x", "headers": {"Content-Type": "application/vnd.bentoml+pickle"}}, 415),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, 400),
        ({"files": {"other": ("scan.png", DISC)}}, 400),
        ({"files": {"file": (None, "http://127.0.0.1:9/scan.png")}}, 400),
    ],
    ids=[
        "nothing",
        "address in JSON",
        "raw",
        "pickle",
        "no boundary",
        "no form",
        "no such part",
        "address in the form",
    ],
)
def test_bad_requests_get_a_sentence(client, request_, status):
    answer = client.post("/segment", **request_)
    assert answer.status_code == status
    assert "form field `file`" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/segment", "/upload"])
def test_bodies_without_a_length_are_bounded_too(client, path):
    request = client.build_request("POST", path, files={"file": ("scan.png", DISC)})
    headers = {"Content-Type": request.headers["Content-Type"]}
    body = request.read()
    assert client.post(path, content=iter([body]), headers=headers).json()["area_fraction"] > 0.1
    endless = (bytes(2**20) for _ in range(30))
    assert client.post(path, content=endless, headers=headers).status_code == 413


def test_logs_hold_no_names(client, log):
    client.post("/upload", files={"file": ("Jane-Doe.png", DISC)})
    client.post("/segment", files={"file": ("Jane-Doe.png", DISC[:50])})
    assert "Jane" not in log.read_text()


def test_a_wrong_digest_stops_the_start(tag, tmp_path):
    wrong = write_model(tmp_path / "wrong", digest="0" * 64)
    log = tmp_path / "serve.log"
    process, url = start(tag, log, TUMORSEG_MODEL=str(wrong))
    try:
        assert not ready(process, url)
        assert process.poll() not in (None, 0)
    finally:
        if process.poll() is None:
            stop(process)
    text = log.read_text()
    assert "has the digest" in text
    assert "Traceback" not in text


def test_another_model_can_be_named(tag, tmp_path):
    other = write_model(tmp_path / "other", version="99")
    process, url = start(tag, tmp_path / "serve.log", TUMORSEG_MODEL=str(other))
    try:
        assert ready(process, url), (tmp_path / "serve.log").read_text()
        reply = httpx.post(f"{url}/segment", files={"file": ("scan.png", DISC)}, timeout=30)
        assert json.loads(reply.text)["model_version"] == "99"
    finally:
        assert stop(process) == 0
