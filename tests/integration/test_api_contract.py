"""What the API says of itself, and what it says to requests that are no use."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.support.serving_model import disc, encode, write_model
from tests.support.serving_process import in_process
from tumorseg.core.service_settings import Settings
from tumorseg.imaging.study import MAX_BYTES
from tumorseg.inference.answers import (
    BatchAnswer,
    Failure,
    SegmentAnswer,
    UploadAnswer,
    UploadFailure,
    Version,
)
from tumorseg.inference.predictor import load_info
from tumorseg.serving.service import Application, create_service

DISC = encode(Image.fromarray(disc()))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[TestClient]:
    with in_process(model) as client:
        yield client


def test_without_a_working_model_it_is_neither_alive_nor_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("TUMORSEG_MODEL", str(tmp_path))
    with TestClient(create_service().to_asgi(), base_url="http://localhost") as client:
        while client.get("/livez").status_code == 200:
            time.sleep(0.05)
        assert client.get("/livez").status_code == 503
        assert client.get("/readyz").status_code == 503
        answer = client.post("/segment", files={"file": ("scan.png", DISC)})
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]


def test_an_application_is_ready_when_its_own_model_is_loaded(client, model, monkeypatch):
    """Another one in the same process, as `client` is here, does not count."""
    monkeypatch.setenv("TUMORSEG_MODEL", str(model))
    begin, own = threading.Event(), Application(Settings())
    assemble = own.assemble

    def late():
        begin.wait()
        return assemble()

    monkeypatch.setattr(own, "assemble", late)
    with TestClient(create_service(own).to_asgi(), base_url="http://localhost") as other:
        assert client.get("/readyz").status_code == 200
        assert other.get("/readyz").status_code == 503
        assert other.post("/segment", files={"file": ("a.png", DISC)}).status_code == 503
        begin.set()
        while other.get("/readyz").status_code != 200:
            time.sleep(0.05)
        assert other.post("/segment", files={"file": ("a.png", DISC)}).status_code == 200


def test_version_names_bento_model_git_and_data(client, model):
    reply, info = client.get("/version").json(), load_info(model)
    assert set(reply) == {"bento", "model", "git", "data"}
    assert reply["model"] == {
        "version": info.version,
        "digest": info.digest,
        "architecture": info.architecture,
    }
    assert (reply["git"], reply["data"]) == (info.git_sha, info.data_md5)


def test_the_description_is_typed_and_its_examples_are_true(client):
    document = client.get("/docs.json").json()
    assert document["openapi"].startswith("3.1")
    for path, model in (("/segment", SegmentAnswer), ("/segment/batch", BatchAnswer)):
        post = document["paths"][path]["post"]
        media = post["responses"]["200"]["content"]["application/json"]
        assert media["schema"]["$ref"] == f"#/components/schemas/{model.__name__}"
        model.model_validate(media["example"])
        for status in ("400", "401", "413", "415", "503", "504"):
            Failure.model_validate(
                post["responses"][status]["content"]["application/json"]["example"]
            )
    form = document["components"]["schemas"]["PictureForm"]
    assert form["properties"]["file"]["format"] == "binary"
    assert form["required"] == ["file"]
    example = document["paths"]["/segment"]["post"]["responses"]["200"]["content"]
    mask = base64.b64decode(example["application/json"]["example"]["mask_png"])
    assert (np.asarray(Image.open(io.BytesIO(mask))) == 255).sum() == 16


def test_every_address_for_files_shows_a_request_and_what_comes_of_it(client):
    paths = client.get("/docs.json").json()["paths"]
    assert set(paths) >= {"/segment", "/segment/batch", "/segment/volume", "/upload", "/version"}
    for path, operations_ in paths.items():
        for form in operations_.get("post", {}).get("requestBody", {}).get("content", {}).values():
            assert "@" in str(form["example"]), path
    volume = paths["/segment/volume"]["post"]["responses"]["200"]["content"]
    for kind in ("application/dicom", "application/gzip"):
        assert volume[kind]["schema"]["format"] == "binary"


def test_what_the_description_says_of_version_and_upload_is_what_they_answer(client):
    def keys(model: type, reply: dict) -> None:
        model.model_validate(reply)
        assert set(reply) <= set(model.model_fields)

    paths = client.get("/docs.json").json()["paths"]
    version = paths["/version"]["get"]["responses"]["200"]["content"]["application/json"]
    upload = paths["/upload"]["post"]["responses"]["200"]["content"]["application/json"]
    for model, example, path in (
        (Version, version["example"], "/version"),
        (UploadAnswer, upload["example"], "/upload"),
    ):
        keys(model, example)
        assert set(example) == set(model.model_fields), path
    keys(Version, client.get("/version").json())
    reply = client.post("/upload", files={"file": ("scan.png", DISC)}).json()
    keys(UploadAnswer, reply)
    assert set(reply) == set(UploadAnswer.model_fields)
    for files in ({"other": ("scan.png", DISC)}, {"file": ("", DISC)}):
        keys(UploadFailure, client.post("/upload", files=files).json())


@pytest.mark.parametrize("path", ["/segment", "/upload"])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (DISC[:300], 400),
        (b"some text", 415),
        (DISC + bytes(MAX_BYTES - len(DISC) + 1), 413),
        (bytes(3 * MAX_BYTES), 413),
    ],
    ids=["empty", "truncated", "wrong", "oversized", "huge"],
)
def test_bad_pictures_get_a_sentence(client, path, data, status):
    answer = client.post(path, files={"file": ("scan.png", data, "image/png")})
    assert answer.status_code == status
    assert answer.json()["error"].endswith(".")


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
