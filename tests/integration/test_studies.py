import gzip
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import highdicom
import nibabel
import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from tests.support.made_volumes import dicom_bytes, series_zip
from tests.support.serving_model import disc, encode, write_model
from tests.support.web import SPACING, dicom_series, nifti_volume, pixels
from tumorseg.imaging.decode import decode
from tumorseg.imaging.preprocess import to_native
from tumorseg.imaging.render import level_of
from tumorseg.imaging.study import Study
from tumorseg.inference import segment
from tumorseg.inference.predictor import Predictor
from tumorseg.serving.web.flask_app import create_app
from tumorseg.serving.web.store import Store

THRESHOLD = 0.37
GREY = disc()
PICTURE = encode(Image.fromarray(GREY))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(write_model(tmp_path_factory.mktemp("model"), threshold=THRESHOLD))


@pytest.fixture
def client(predictor: Predictor) -> FlaskClient:
    return create_app(predictor).test_client()


def send(client: FlaskClient, data: bytes = PICTURE) -> dict:
    answer = client.post("/studies", data={"file": (io.BytesIO(data), "a")})
    assert answer.status_code == 200, answer.json
    return answer.json


def test_a_picture_is_answered_with_all_that_the_page_shows(client, predictor):
    study, found = send(client), predictor.segment(GREY)
    assert study["kind"] == "picture"
    assert (study["spacing"], study["thickness"]) == (None, None)
    assert study["threshold"] == THRESHOLD
    assert study["model_digest"] == predictor.info.digest
    (only,) = study["slices"]
    assert (only["width"], only["height"]) == (90, 120)
    assert only["area_px"] == found.area_px == int(found.mask.sum())
    assert only["area_mm2"] is None
    assert only["area_fraction"] == pytest.approx(found.area_fraction)
    assert only["confidence"] == pytest.approx(found.confidence)
    assert only["warnings"] == []
    assert sum(only["histogram"]) == GREY.size
    assert sum(only["histogram"][level_of(THRESHOLD) :]) == found.area_px


def test_image_and_probability_are_the_slice_and_the_model_s(client, predictor):
    at, found = f"/studies/{send(client)['id']}", predictor.segment(GREY)
    image, graded = (client.get(f"{at}/0/{name}.png") for name in ("image", "probability"))
    assert image.mimetype == graded.mimetype == "image/png"
    assert np.array_equal(pixels(image.data), GREY)
    values = pixels(graded.data)
    assert values.shape == GREY.shape
    assert np.array_equal(values >= level_of(THRESHOLD), found.mask)
    exact = to_native(found.probability, GREY.shape)
    assert np.abs(values / 255 - exact).max() <= 1.5 / 255


def test_masks_at_any_threshold(client, predictor):
    study = send(client)
    own = client.get(f"/studies/{study['id']}/mask.png")
    assert np.array_equal(pixels(own.data) > 0, predictor.segment(GREY).mask)
    assert own.headers["Content-Disposition"] == "attachment"
    exact = to_native(predictor.segment(GREY).probability, GREY.shape)
    for threshold in (0, 0.1, 0.3, 0.5, 0.9, 0.99, 1):
        answer = client.get(f"/studies/{study['id']}/mask.png?slice=0&threshold={threshold}")
        mask = pixels(answer.data) > 0
        # Rounded to the next level, or the one after where the threshold lies between.
        assert mask[exact >= threshold + 1.5 / 255].all()
        assert not mask[exact < threshold - 1.5 / 255].any()
        assert mask.sum() == sum(study["slices"][0]["histogram"][level_of(threshold) :])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("mask.png?threshold=2", 400),
        ("mask.png?threshold=nan", 400),
        ("mask.png?threshold=much", 400),
        ("mask.png?slice=-1", 404),
        ("mask.png?slice=%C2%B2", 400),
        ("mask.png?slice=1", 404),
        ("mask.png?slice=99999999999999999999", 404),
        ("1/image.png", 404),
        ("-1/image.png", 404),
        ("0/other.png", 404),
        ("seg.dcm", 404),
        ("mask.nii.gz", 404),
    ],
)
def test_what_does_not_exist_is_refused_with_a_sentence(client, path, status):
    answer = client.get(f"/studies/{send(client)['id']}/{path}")
    assert answer.status_code == status
    assert answer.json["error"]


def test_another_session_gets_nothing(predictor):
    app = create_app(predictor)
    owner, other = app.test_client(), app.test_client()
    owner.get("/")
    other.get("/")
    at = f"/studies/{send(owner)['id']}"
    for path in (f"{at}/0/image.png", f"{at}/0/probability.png", f"{at}/mask.png"):
        assert owner.get(path).status_code == 200
        for stranger in (other, app.test_client()):
            answer = stranger.get(path)
            assert answer.status_code == 404
            assert answer.json["error"].endswith(".")
    assert other.delete(at).status_code == 404
    assert owner.get(f"{at}/mask.png").status_code == 200


def test_studies_are_kept_until_they_are_removed_or_expire(predictor):
    now = [0.0]
    client = create_app(predictor, Store(600, 10**8, clock=lambda: now[0])).test_client()
    first, second = (f"/studies/{send(client)['id']}" for _ in range(2))
    assert client.delete(first).status_code == 204
    assert client.get(f"{first}/mask.png").status_code == 404
    now[0] = 599
    assert client.get(f"{second}/mask.png").status_code == 200
    now[0] = 600
    assert client.get(f"{second}/mask.png").status_code == 404


def test_a_study_larger_than_its_share_of_the_memory_is_refused(predictor):
    client = create_app(predictor, Store(600, 2000)).test_client()
    answer = client.post("/studies", data={"file": (io.BytesIO(PICTURE), "a")})
    assert answer.status_code == 413
    assert answer.json["error"].endswith(".")


@pytest.mark.parametrize("threshold", [THRESHOLD, 0.8])
def test_a_series_becomes_a_segmentation_at_the_threshold(client, predictor, threshold, tmp_path):
    series = dicom_series()
    data = series_zip(series)
    study = send(client, data)
    assert study["kind"] == "dicom"
    assert study["spacing"] == [0.5, 0.7]
    assert study["thickness"] == 4
    answer = client.get(f"/studies/{study['id']}/seg.dcm?threshold={threshold}")
    assert (answer.status_code, answer.mimetype) == (200, "application/dicom")
    (tmp_path / "seg.dcm").write_bytes(answer.data)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    shown = [
        pixels(client.get(f"/studies/{study['id']}/mask.png?slice={n}&threshold={threshold}").data)
        for n in range(3)
    ]
    sources = [one.SOPInstanceUID for one in series]  # in the order of their places
    masks = seg.get_pixels_by_source_instance(sources, segment_numbers=[1])[..., 0]
    assert np.array_equal(masks > 0, np.stack(shown) > 0)
    packed = client.get(f"/studies/{study['id']}/mask.nii.gz?threshold={threshold}").data
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))
    for number, one in enumerate(shown):  # columns first, and the slices in the study's order
        assert np.array_equal(np.asarray(mask.dataobj)[..., number].T > 0, one > 0)
    assert mask.header.get_zooms() == pytest.approx((0.7, 0.5, 4.0))


def test_a_nifti_volume_becomes_a_mask_on_its_own_grid(client, predictor):
    image = nifti_volume()
    study = send(client, image.to_bytes())
    assert study["kind"] == "nifti"
    assert study["thickness"] == pytest.approx(SPACING[2])
    assert sorted(study["spacing"]) == pytest.approx(sorted(SPACING[:2]))
    answer = client.get(f"/studies/{study['id']}/mask.nii.gz?threshold=0.6")
    assert (answer.status_code, answer.mimetype) == (200, "application/gzip")
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.data))
    assert np.array_equal(mask.affine, image.affine)
    areas = [sum(one["histogram"][level_of(0.6) :]) for one in study["slices"]]
    found = np.asarray(mask.dataobj).sum(axis=(0, 1)).tolist()
    assert found == areas or found == areas[::-1]
    assert np.asarray(mask.dataobj).sum() == sum(areas) > 0


def test_a_volume_without_a_place_is_refused_at_once_and_pictures_pass(predictor, monkeypatch):
    here, free = threading.Semaphore(0), threading.Event()

    def slow(data: bytes) -> Study:
        if data == volume:
            here.release()
            free.wait(20)
        return decode(data)

    monkeypatch.setattr(segment, "decode", slow)
    app = create_app(predictor, volumes=2)
    volume = dicom_bytes(dicom_series(1)[0])
    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(send, app.test_client(), volume) for _ in range(2)]
        for _ in first:
            assert here.acquire(timeout=10)
        refused = app.test_client().post("/studies", data={"file": (io.BytesIO(volume), "a")})
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert "other volumes" in refused.json["error"]
        assert send(app.test_client())["kind"] == "picture"
        free.set()
        assert all(one.result()["kind"] == "dicom" for one in first)
    for _ in range(3):  # their places are free again
        send(app.test_client(), volume)
