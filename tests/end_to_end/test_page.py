"""The page, from choosing a file to downloading the mask, in headless Chromium."""

import gzip
import io
from collections.abc import Iterator
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.support.browser import NARROW, chromium, opened
from tests.support.made_volumes import dicom_bytes, series_zip
from tests.support.serving_model import disc, encode, write_model
from tests.support.web import dicom_series, nifti_volume, pixels
from tumorseg.imaging.decode import decode
from tumorseg.inference.predictor import Predictor
from tumorseg.monitoring.ood import Assessment, OodDetector
from tumorseg.serving.web.flask_app import create_app
from tumorseg.serving.web.store import Store

JPEG = encode(Image.fromarray(disc()), "JPEG", quality=95)
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(write_model(tmp_path_factory.mktemp("model"), threshold=0.4))


def test_a_jpeg_from_choosing_it_to_its_mask(browser, predictor):
    grey = decode(JPEG).slices[0]
    found = predictor.segment(grey)
    with opened(browser, create_app(predictor)) as page:
        page.choose(("scan.jpg", JPEG))
        assert f"{found.area_px:,} px" in page.ready("scan.jpg").inner_text()
        assert page.text("area") == f"{found.area_px:,} px"
        assert page.text("confidence") == f"{found.confidence:.2f}"
        assert f"{100 * found.area_fraction:.2f}%" in page.text("area-more")
        assert "version 3" in page.page.locator("header").inner_text()
        name, data = page.download("get-mask")
        assert name == "scan-mask.png"
        assert np.array_equal(pixels(data), found.mask * np.uint8(255))

        page.slide("threshold", 0.9)
        name, data = page.download("get-mask")
        area = int((pixels(data) > 0).sum())
        assert 0 < area < found.area_px
        assert page.text("area") == f"{area:,} px"
        assert f"{area:,} px" in page.line("scan.jpg").inner_text()
        assert "Not the model’s own" in page.text("threshold-note")
        page.page.locator("#own").click()
        assert page.text("area") == f"{found.area_px:,} px"


def test_fill_outline_views_and_zoom_by_mouse_and_keys(browser, predictor):
    with opened(browser, create_app(predictor)) as page:
        page.choose(("scan.jpg", JPEG))
        page.ready("scan.jpg")
        fill = page.painted()
        page.page.get_by_label("Outline").check(force=True)
        assert 0 < page.painted() < fill / 3
        page.page.keyboard.press("h")
        assert page.painted() == 0
        page.page.keyboard.press("f")
        assert page.painted() == fill
        page.slide("opacity", 0.05)
        assert page.painted() < fill
        page.slide("opacity", 0.8)
        page.page.keyboard.press("o")
        assert not page.page.locator("#plain").is_visible()
        overlay = page.painted()
        assert overlay > fill
        page.page.keyboard.press("+")
        assert page.text("zoom") == "150%"
        page.page.locator("#painted").hover()
        page.page.mouse.wheel(0, -300)
        assert page.text("zoom") != "150%"
        assert "probability" in page.text("reading")
        close = page.painted()
        page.page.mouse.down()
        page.page.mouse.move(900, 700, steps=4)
        page.page.mouse.up()
        assert page.painted() != close
        page.page.keyboard.press("0")
        assert (page.text("zoom"), page.painted()) == ("100%", overlay)
        page.page.keyboard.press("s")
        assert page.page.locator("#plain").is_visible()


def test_errors_are_sentences_beside_the_file_concerned(browser, predictor):
    with opened(browser, create_app(predictor)) as page:
        page.choose(("notes.txt", b"text"), ("cut.png", JPEG[:300]), ("scan.jpg", JPEG))
        page.ready("scan.jpg")
        for name, says in (("notes.txt", "neither JPEG nor PNG"), ("cut.png", "damaged")):
            sentence = page.line(name).get_by_role("alert")
            assert says in sentence.inner_text()
            assert not page.line(name).get_by_role("button", name="Try again").is_visible()
        assert not page.line("scan.jpg").get_by_role("alert").is_visible()
        assert page.text("area").endswith(" px")


def test_a_busy_service_is_asked_again_and_a_dead_one_on_demand(browser, predictor):
    app, busy = create_app(predictor), [2]

    def sometimes(environ: dict[str, Any], start: Any) -> Any:
        if environ["PATH_INFO"] == "/studies" and busy[0]:
            busy[0] -= 1
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            start("503 Service Unavailable", [("Retry-After", "2")])
            return [b'{"error": "Two volumes are being decoded."}']
        return app(environ, start)

    with opened(browser, sometimes) as page:
        page.choose(("first.jpg", JPEG))
        alert = page.line("first.jpg").get_by_role("alert")
        alert.get_by_text("Two volumes are being decoded.").wait_for()
        page.ready("first.jpg")
        assert (busy, alert.is_visible()) == ([0], False)
        page.page.route("**/studies", lambda route: route.abort())
        page.choose(("second.jpg", JPEG))
        second = page.line("second.jpg")
        second.get_by_text("cannot be reached").wait_for()
        page.page.unroute("**/studies")
        second.get_by_role("button", name="Try again").click()
        page.ready("second.jpg")
        assert not second.get_by_role("alert").is_visible()


def test_an_expired_study_says_so_and_can_be_sent_again(browser, predictor):
    now = [0.0]
    store = Store(600, 10**8, clock=lambda: now[0])
    with opened(browser, create_app(predictor, store)) as page:
        page.choose(("scan.jpg", JPEG))
        line = page.ready("scan.jpg")
        now[0] = 600
        page.page.locator("#get-mask").click()
        assert "not kept" in line.get_by_role("alert").inner_text()
        assert "not kept" in page.text("trouble")
        line.get_by_role("button", name="Send again").click()
        page.page.locator("#trouble").wait_for(state="hidden")
        assert page.download("get-mask")[0] == "scan-mask.png"
        line.get_by_label("Remove").click()
        assert page.page.locator("#studies li").count() == 0
        assert store.held == 0


def test_warnings_are_shown_beside_the_slice(browser, predictor, monkeypatch):
    odd = Assessment(["The slice is <b>unlike</b> MRI."])
    monkeypatch.setattr(OodDetector, "assess", lambda *_: odd)
    with opened(browser, create_app(predictor)) as page:
        page.choose(("scan.jpg", JPEG))
        assert "warning" in page.ready("scan.jpg").inner_text()
        assert page.text("warnings") == "The slice is <b>unlike</b> MRI."


def test_a_dicom_series_from_choosing_it_to_its_segmentation(browser, predictor):
    series = dicom_series()
    data = series_zip(series)
    greys = decode(data).slices
    masks = [predictor.segment(grey).mask for grey in greys]
    area = sum(int(mask.sum()) for mask in masks)
    with opened(browser, create_app(predictor)) as page:
        page.choose(("series.zip", data), ("one.dcm", dicom_bytes(series[0])))
        page.ready("series.zip")
        millilitres = area * 0.5 * 0.7 * 4 / 1000
        assert float(page.text("volume").split()[0]) == pytest.approx(millilitres, rel=0.02)
        assert page.text("area").endswith(" mm²")
        name, seg = page.download("get-seg")
        assert name == "series-seg.dcm"
        found = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(seg)))
        assert int(found.pixel_array.sum()) == area
        sources = {str(u[2]) for u in found.get_source_image_uids()}
        assert sources == {str(one.SOPInstanceUID) for one in series}
        name, packed = page.download("get-nifti")
        assert name == "series-mask.nii.gz"
        assert (
            int(nibabel.Nifti1Image.from_bytes(gzip.decompress(packed)).get_fdata().sum()) == area
        )
        page.ready("one.dcm").locator(".open").click()
        assert not page.page.locator("#slice").is_visible()
        assert page.download("get-seg")[0] == "one-seg.dcm"


def test_a_nifti_volume_from_choosing_it_to_its_mask(browser, predictor):
    image = nifti_volume()
    greys = decode(image.to_bytes()).slices
    with opened(browser, create_app(predictor)) as page:
        page.choose(("brain.nii.gz", gzip.compress(image.to_bytes())))
        page.ready("brain.nii.gz")
        areas = [predictor.segment(grey).area_px for grey in greys]
        largest = areas.index(max(areas))
        assert page.text("place") == f"{largest + 1} / 7"
        page.page.keyboard.press("Home")
        for number, area in enumerate(areas):
            assert page.text("place") == f"{number + 1} / 7"
            assert page.text("area-more").startswith(f"{area:,} px")
            page.page.keyboard.press("ArrowRight")
        page.slide("slice", 2)
        assert page.text("place") == "2 / 7"
        name, png = page.download("get-mask")
        assert name == "brain-slice-002-mask.png"
        assert np.array_equal(pixels(png) > 0, predictor.segment(greys[1]).mask)
        name, packed = page.download("get-nifti")
        assert name == "brain-mask.nii.gz"
        mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))
        assert np.array_equal(mask.affine, image.affine)
        assert int(np.asarray(mask.dataobj).sum()) == sum(areas)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_telephone(browser, predictor, scheme):
    options = {"color_scheme": scheme, "has_touch": True, "is_mobile": True}
    with opened(browser, create_app(predictor), NARROW, **options) as page:
        for files in ([], [("a-file-with-a-name-that-is-rather-long.jpg", JPEG), ("b.txt", b"x")]):
            if files:
                page.choose(*files)
                page.line("b.txt").get_by_role("alert").wait_for()
            assert page.page.evaluate("document.documentElement.scrollWidth") == 360
            page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
            note = page.page.get_by_text("Research use only").bounding_box()
            assert 0 <= note["y"] < 100
        light = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(light.split("(")[1].split(",")[0]) > 128) == (scheme == "light")
