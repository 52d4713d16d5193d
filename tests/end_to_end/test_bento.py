import base64
import io
import json
import re
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

import tumorseg
from tests.support.serving_model import disc, encode, write_model
from tests.support.serving_process import ready, start, stop
from tumorseg.core.errors import InputError
from tumorseg.core.service_settings import Settings, load_settings
from tumorseg.inference.predictor import Predictor, load_info
from tumorseg.registry import bento

pytestmark = pytest.mark.slow

SETTINGS = Settings(max_queue=40, cors_origins=["https://viewer.example"])
REQUIREMENTS = [f"bentoml=={version('bentoml')}", f"flask=={version('flask')}"]


DISC = encode(Image.fromarray(disc()))


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
    return bento.build(model, requirements=REQUIREMENTS, settings=SETTINGS)


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
    assert {"tumorseg/serving/web/page.html", "model/model.onnx"} <= held
    package = Path(tumorseg.__file__).parent
    served = {
        f"tumorseg/{p.relative_to(package)}"
        for p in (package / "serving").rglob("*.*")
        if p.parent.name != "__pycache__"
    }
    assert served <= held
    top = {p.name for p in (folder / "src" / "tumorseg").iterdir() if p.name != "__pycache__"}
    assert top == {"__init__.py", "core", "imaging", "inference", "monitoring", "serving"}
    assert load_settings(folder / "src" / "service.json") == SETTINGS
    about = yaml.safe_load((folder / "bento.yaml").read_text())
    info = load_info(model)
    known = {name: getattr(info, name) for name in about["labels"]}
    assert about["labels"] == known and {"version", "digest", "run_id"} <= set(known)
    assert set(REQUIREMENTS) <= set((folder / "env/python/requirements.txt").read_text().split())


def test_building_again_gives_the_same_bento(tag, folder, model, tmp_path):
    made = (folder / "bento.yaml").stat().st_mtime_ns
    assert bento.build(model, requirements=REQUIREMENTS, settings=SETTINGS) == tag
    assert (folder / "bento.yaml").stat().st_mtime_ns == made
    assert len([p for p in folder.parent.iterdir() if p.is_dir()]) == 1


def test_an_exchanged_model_is_not_built(home, tmp_path):
    with pytest.raises(InputError, match="digest"):
        wrong = write_model(tmp_path, digest="0" * 64)
        bento.build(wrong, requirements=REQUIREMENTS, settings=SETTINGS)


def test_the_image_runs_without_rights_and_holds_the_bento_only(folder):
    """No container engine is needed: this is what `bentoml containerize` hands to one."""
    lines = (folder / "env/docker/Dockerfile").read_text().splitlines()
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert [line for line in lines if line.startswith("USER")][-1] == "USER bentoml"
    assert lines[-1].startswith("ENTRYPOINT") and "entrypoint.sh" in lines[-1]
    copied = [line.split()[-2] for line in lines if line.startswith(("COPY", "ADD"))]
    assert copied and set(copied) <= {".", "./env/python"}  # within the bento's own folder
    assert "ENV BENTOML_HOST=$BENTOML_HOST" in lines
    assert {"ARG BENTOML_HOST=0.0.0.0", "ARG MALLOC_ARENA_MAX=2"} <= set(lines)
    assert "/readyz" in next(line for line in lines if line.startswith("HEALTHCHECK"))
    assert lines[0].startswith("FROM python:3")
    assert not re.search("(?i)api_key|secret|token|password", "\n".join(lines))
    # A shell between the container and the service would keep SIGTERM to itself.
    assert "exec" in (folder / "env/docker/entrypoint.sh").read_text()


def test_the_bento_answers_and_keeps_bentoml_s_own_routes(client, tag, model):
    reply = client.post("/segment", files={"file": ("scan.png", DISC, "image/png")}).json()
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(reply["mask_png"]))))
    assert np.array_equal(mask, Predictor(model).segment(disc()).mask * np.uint8(255))
    assert client.get("/version").json()["bento"] == tag
    for path in ("/livez", "/readyz", "/metrics", "/schema.json"):
        assert client.get(path).status_code == 200
    paths = client.get("/docs.json").json()["paths"]
    assert {"/segment", "/segment/batch", "/segment/volume", "/version"} <= set(paths)


def test_metrics_count_what_was_asked_and_found(client):
    def figure(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0

    names = (
        'tumorseg_request_seconds_count{route="/segment",status="200"}',
        'tumorseg_request_seconds_count{route="/segment",status="415"}',
        'tumorseg_request_seconds_count{route="/uploads/{name}",status="404"}',
        "tumorseg_slices_total",
        "tumorseg_area_fraction_count",
        "tumorseg_batch_slices_sum",
    )
    before = [figure(name) for name in names]
    client.post("/segment", files={"file": ("scan.png", DISC)})
    client.post("/segment", files={"file": ("scan.png", b"some text")})
    client.post("/segment/batch", files=[("files", ("scan.png", DISC))] * 3)
    client.post("/upload", files={"file": ("scan.png", DISC)})
    client.get("/uploads/secret")
    after = [figure(name) for name in names]
    assert [new - old for old, new in zip(before, after, strict=True)] == [1, 1, 1, 5, 5, 5]
    assert figure("tumorseg_queue_requests") == 0
    assert figure("tumorseg_page_bytes") > len(DISC)  # the original, and what was drawn
    assert "secret" not in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/segment", "/upload"])
def test_bodies_without_a_length_are_bounded_too(client, path):
    request = client.build_request("POST", path, files={"file": ("scan.png", DISC)})
    headers = {"Content-Type": request.headers["Content-Type"]}
    body = request.read()
    assert client.post(path, content=iter([body]), headers=headers).json()["area_fraction"] > 0.1
    endless = (bytes(2**20) for _ in range(30))
    assert client.post(path, content=endless, headers=headers).status_code == 413


def test_the_log_has_one_line_a_request_and_no_names(client, log):
    asked = {"X-Request-ID": "one-of-these"}
    reply = client.post("/upload", files={"file": ("Jane-Doe.png", DISC)}, headers=asked).json()
    client.post("/segment", files={"file": ("Jane-Doe.png", DISC[:50])}, headers=asked)
    client.get(f"/segmented/{reply['segmented_img']}?patient=Jane", headers=asked)
    client.get("/Jane/Doe", headers=asked)
    end = time.monotonic() + 10
    while log.read_text().count("one-of-these") < 4 and time.monotonic() < end:
        time.sleep(0.05)  # the line follows the answer
    text = log.read_text()
    assert "Jane" not in text
    assert reply["segmented_img"] not in text
    lines = [json.loads(line) for line in text.splitlines() if "one-of-these" in line]
    # A line follows its answer, and so may come after the line of the next request.
    assert sorted((line["route"], line["status"], line["slices"]) for line in lines) == [
        ("/segment", 400, 0),
        ("/segmented/{name}", 200, 0),
        ("/upload", 200, 1),
        ("other", 404, 0),
    ]
    assert set(lines[0]) == {
        "time", "request", "method", "route", "status", "ms", "bytes", "slices",
    }  # fmt: skip
