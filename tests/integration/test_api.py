"""The API and the service around it in this process: BentoML's application without its server."""

import base64
import io
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from tests.support.serving_model import disc, encode
from tumorseg.imaging.preprocess import to_native
from tumorseg.imaging.study import MAX_BYTES, Study
from tumorseg.inference.answers import (
    BatchAnswer,
    Failure,
    SegmentAnswer,
    UploadAnswer,
    UploadFailure,
    Version,
)
from tumorseg.inference.predictor import load_info
from tumorseg.serving import operations
from tumorseg.serving.service import create_service

DISC = encode(Image.fromarray(disc()))
SCAN = {"file": ("scan.png", DISC)}


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.roll(disc(), (int(rng.integers(-30, 30)), int(rng.integers(-5, 25))), (0, 1))


def unpack(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_segment_equals_the_predictor(client, predictor):
    reply = client.post("/segment", files=SCAN).json()
    expected = predictor.segment(disc())
    assert np.array_equal(unpack(reply["mask_png"]), expected.mask * np.uint8(255))
    assert (reply["width"], reply["height"]) == (90, 120)
    assert reply["area_px"] == expected.area_px
    assert reply["area_mm2"] is None
    assert reply["contours"] == expected.contours
    assert reply["model_digest"] == predictor.info.digest
    assert reply["inputs_known"] is False
    assert reply["warnings"] == []


@pytest.mark.parametrize(
    ("sent", "status", "given"),
    [
        ("true", 200, True),
        ("1", 200, True),
        ("false", 200, False),
        ("", 200, False),
        ("perhaps", 400, False),
    ],
)
def test_probabilities_are_answered_on_request(client, predictor, sent, status, given):
    answer = client.post("/segment", files=SCAN, data={"probability": sent})
    reply = answer.json()
    assert (answer.status_code, "probability_png" in reply) == (status, given)
    assert status == 200 or "`probability`" in reply["error"]
    if given:
        native = to_native(predictor.segment(disc()).probability, (120, 90))
        assert np.abs(unpack(reply["probability_png"]) / 255 - native).max() <= 0.5 / 255 + 1e-6


def test_a_batch_keeps_its_order_and_a_bad_file_concerns_only_its_own_result(client, predictor):
    pictures = [picture(seed) for seed in range(20)]
    files = [encode(Image.fromarray(pixels)) for pixels in pictures]
    files[3], files[7], files[11] = b"", b"some text", files[11][:200]
    reply = client.post("/segment/batch", files=[("files", ("x.png", f)) for f in files]).json()
    assert reply["model_version"] == predictor.info.version
    for number, (pixels, result) in enumerate(zip(pictures, reply["results"], strict=True)):
        if number in (3, 7, 11):
            assert list(result) == ["error"]
        else:
            expected = predictor.segment(pixels).mask
            assert np.array_equal(unpack(result["mask_png"]), expected * np.uint8(255))


@pytest.mark.parametrize(("number", "status"), [(0, 400), (64, 200), (65, 400)])
def test_a_batch_has_one_to_64_files(client, number, status):
    files = [("files", ("x.png", DISC))] * number or [("other", ("x.png", DISC))]
    answer = client.post("/segment/batch", files=files)
    assert answer.status_code == status, answer.text


def test_masks_are_not_swapped_among_requests_at_once(client, predictor):
    def mine(seed: int) -> bool:
        pixels = picture(seed)
        bad = client.post("/segment", files={"file": ("x.png", b"\xff\xd8\xff bad")})
        files = {"file": ("x.png", encode(Image.fromarray(pixels)))}
        mask = unpack(client.post("/segment", files=files).json()["mask_png"])
        expected = predictor.segment(pixels).mask * np.uint8(255)
        return bad.status_code == 400 and np.array_equal(mask, expected)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(mine, range(48)))


def test_slices_of_the_page_are_counted_among_the_batches(client):
    for path in ("/segment", "/upload", "/studies"):
        before = REGISTRY.get_sample_value("tumorseg_batch_slices_sum")
        assert client.post(path, files=SCAN).status_code == 200
        assert REGISTRY.get_sample_value("tumorseg_batch_slices_sum") == before + 1


@pytest.mark.parametrize("path", ["/segment", "/studies"])
def test_an_unforeseen_failure_is_logged_without_message_name_or_path(
    client, monkeypatch, capfd, path
):
    patient = "DOE^JANE"

    def broken(data: bytes) -> Study:
        raise RuntimeError(patient)

    operations.start_log()
    monkeypatch.setattr("tumorseg.serving.endpoints.decode", broken)
    monkeypatch.setattr("tumorseg.inference.segment.decode", broken)
    answer = client.post(path, files={"file": ("DOE.png", DISC)})
    assert answer.status_code == 500
    assert "The service failed" in answer.json()["error"]
    log = capfd.readouterr()
    assert "RuntimeError" in log.out and answer.json()["request_id"] in log.out
    assert "DOE" not in log.out + log.err


@pytest.mark.parametrize(
    ("method", "address", "status", "allowed"),
    [
        ("GET", "/none", 404, None),
        ("GET", "/segment", 405, "POST"),
        ("POST", "/version", 405, "GET"),
        ("GET", "/upload", 405, "OPTIONS, POST"),
        ("POST", "/segmented/%2e%2e%2fmodel.json", 404, None),
    ],
)
def test_a_wrong_address_is_answered_with_a_sentence(client, method, address, status, allowed):
    answer = client.request(method, address)
    assert answer.status_code == status
    assert answer.json()["error"] and answer.json()["request_id"]
    sent = answer.headers.get("Allow")
    assert (sent and ", ".join(sorted(sent.split(", ")))) == allowed


def test_a_service_without_a_working_model_is_neither_alive_nor_ready(
    client, tmp_path, monkeypatch
):
    """Another application in the same process, as `client` is here, does not count."""
    monkeypatch.setenv("TUMORSEG_MODEL", str(tmp_path))
    with TestClient(create_service().to_asgi(), base_url="http://localhost") as other:
        while other.get("/livez").status_code == 200:
            time.sleep(0.05)
        for answer in (other.get("/readyz"), other.post("/segment", files=SCAN), other.get("/")):
            assert answer.status_code == 503
        assert answer.headers["Retry-After"]
    assert client.get("/readyz").status_code == 200


def test_version_names_bento_model_git_and_data(client, model):
    reply, info = client.get("/version").json(), load_info(model)
    assert set(reply) == set(Version.model_fields)
    assert reply["model"] == {
        "version": info.version,
        "digest": info.digest,
        "architecture": info.architecture,
    }
    assert (reply["git"], reply["data"]) == (info.git_sha, info.data_md5)


def test_the_openapi_document_has_valid_examples(client):
    document = client.get("/docs.json").json()
    assert document["openapi"].startswith("3.1")
    paths, form = document["paths"], document["components"]["schemas"]["PictureForm"]
    assert form["properties"]["file"]["format"] == "binary"
    assert form["required"] == ["file"]
    assert set(paths) >= {"/segment", "/segment/batch", "/segment/volume", "/upload", "/version"}
    for path, operation in paths.items():
        if post := operation.get("post"):
            assert "@" in str(post["requestBody"]["content"]["multipart/form-data"]["example"]), (
                path
            )
            refused = post["responses"]["default"]["content"]["application/json"]
            Failure.model_validate(refused["example"])
    for path, model in (("/segment", SegmentAnswer), ("/segment/batch", BatchAnswer)):
        answer = paths[path]["post"]["responses"]["200"]["content"]["application/json"]
        assert answer["schema"]["$ref"] == f"#/components/schemas/{model.__name__}"
        model.model_validate(answer["example"])


def test_upload_answers_as_the_openapi_document_says(client):
    reply = client.post("/upload", files=SCAN).json()
    assert set(reply) == set(UploadAnswer.model_fields)
    UploadAnswer.model_validate(reply)
    for files in ({"other": ("scan.png", DISC)}, {"file": ("", DISC)}):
        UploadFailure.model_validate(client.post("/upload", files=files).json())


@pytest.mark.parametrize("path", ["/segment", "/upload", "/studies"])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (DISC[:300], 400),
        (b"some text", 415),
        (DISC + bytes(MAX_BYTES - len(DISC) + 1), 413),
    ],
    ids=["empty", "truncated", "wrong", "oversized"],
)
def test_bad_pictures_get_a_sentence(client, path, data, status):
    answer = client.post(path, files={"file": ("scan.png", data, "image/png")})
    assert answer.status_code == status
    assert answer.json()["error"].endswith(".") and answer.json()["request_id"]


FORM = "multipart/form-data"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({}, 415),
        ({"json": {"file": "http://127.0.0.1:9/scan.png"}}, 415),
        ({"content": DISC, "headers": {"Content-Type": "image/png"}}, 415),
        ({"content": b"x", "headers": {"Content-Type": "application/vnd.bentoml+pickle"}}, 415),
        ({"content": b"x", "headers": {"Content-Type": FORM}}, 400),
        ({"content": b"x", "headers": {"Content-Type": f"{FORM}; boundary=a"}}, 400),
        ({"files": {"other": ("scan.png", DISC)}}, 400),
        ({"files": {"file": (None, "http://127.0.0.1:9/scan.png")}}, 400),
    ],
    ids=["empty", "URL in JSON", "raw", "pickle", "no boundary", "no form", "no part", "URL"],
)
def test_bad_requests_get_a_sentence(client, request_, status):
    answer = client.post("/segment", **request_)
    assert answer.status_code == status
    assert "form field `file`" in answer.json()["error"]


def test_the_page_is_self_contained_and_strict(client, predictor):
    answer = client.get("/")
    assert "Research use only" in answer.text
    assert f"version {predictor.info.version}" in answer.text
    assert not re.search("https?://", answer.text)
    policy = answer.headers["Content-Security-Policy"]
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert answer.text.count(f'nonce="{nonce}"') == 2
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert client.get("/").headers["Content-Security-Policy"] != policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


def test_the_service_imports_all_readers_and_nothing_of_training(tmp_path: Path) -> None:
    """Threads of two first volumes that imported a reader at once would see it half made."""
    code = "import sys, tumorseg.serving.service; print(*sys.modules)"
    command, home = [sys.executable, "-c", code], os.environ | {"BENTOML_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=home)
    heavy = {"torch", "lightning", "mlflow", "prefect", "dvc", "albumentations", "pandas"}
    loaded = set(done.stdout.split())
    assert not heavy & loaded
    assert {"pydicom", "highdicom", "nibabel", "tumorseg.imaging.seg"} <= loaded
