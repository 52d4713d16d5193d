"""Pictures to grey values, and the packaged model as a function of one slice."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.support.serving_model import SIZE, disc, encode, write_model
from tests.support.spoilt_volumes import scans
from tumorseg.core.errors import InputError
from tumorseg.imaging.decode import decode
from tumorseg.imaging.preprocess import to_grid, to_input, to_native
from tumorseg.imaging.study import MAX_BYTES, MAX_SIDE, Rejected
from tumorseg.inference.predictor import Predictor, load_info

DISC = encode(Image.fromarray(disc()))
JPEG = encode(Image.fromarray(disc()), "JPEG")


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header has a size that its few bytes do not hold."""
    header = bytearray(DISC)
    struct.pack_into(">II", header, 16, width, height)
    struct.pack_into(">I", header, 29, zlib.crc32(header[12:29]))
    return bytes(header)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(write_model(tmp_path_factory.mktemp("model")))


def test_decode_gives_the_grey_values():
    assert np.array_equal(decode(DISC).slices[0], disc())
    assert decode(JPEG).slices[0].shape == disc().shape
    assert np.array_equal(decode(encode(Image.fromarray(disc()).convert("RGB"))).slices[0], disc())
    deep = Image.fromarray(disc().astype(np.uint16) * 16)
    assert decode(encode(deep)).slices[0].max() == 255


def test_decode_turns_a_picture_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encode(Image.fromarray(disc()), "JPEG", exif=exif, quality=95)).slices[0]
    assert turned.shape == disc().shape[::-1]


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        pytest.param(b"", 400, "empty", id="empty"),
        pytest.param(b"some text", 415, "neither JPEG nor PNG", id="text"),
        pytest.param(encode(Image.fromarray(disc()), "GIF"), 415, "neither JPEG nor PNG", id="GIF"),
        pytest.param(DISC[:300], 400, "damaged", id="cut PNG"),
        pytest.param(DISC[:20], 400, "damaged", id="cut header"),
        pytest.param(JPEG[: len(JPEG) // 2], 400, "damaged", id="cut JPEG"),
        pytest.param(DISC[:100] + bytes(200) + DISC[300:], 400, "damaged", id="overwritten"),
        pytest.param(b"\xff\xd8\xff" + bytes(50), 400, "damaged", id="only a signature"),
        pytest.param(DISC + bytes(MAX_BYTES), 413, "10 MiB", id="too many bytes"),
        pytest.param(png_claiming(MAX_SIDE + 1, 100), 413, "4096 pixels", id="too wide"),
        pytest.param(png_claiming(60_000, 60_000), 413, "4096 pixels", id="bomb"),
        pytest.param(png_claiming(15, 100), 400, "smaller than 16", id="tiny"),
        pytest.param(scans(120, 90, 100), 413, "more than 100 scans", id="many scans"),
    ],
)
def test_decode_rejects_with_a_sentence(data, status, word, recwarn):
    with pytest.raises(Rejected) as caught:
        decode(data)
    assert caught.value.status == status
    assert word in caught.value.sentence
    assert not recwarn.list


def test_segment_preprocesses_runs_the_network_and_measures(predictor):
    found = predictor.segment(disc())
    expected = 1 / (1 + np.exp(-4 * to_input(to_grid(disc(), SIZE))[0]))
    assert (found.probability.shape, found.probability.dtype) == ((SIZE, SIZE), np.float32)
    np.testing.assert_allclose(found.probability, expected, atol=1e-5)
    native = to_native(found.probability, disc().shape)
    assert np.array_equal(found.mask, native >= predictor.info.threshold)
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


def test_contours_lie_on_the_mask(predictor):
    probability = np.zeros((SIZE, SIZE), np.float32)
    probability[:9, :7] = probability[40:50, 30:] = 1
    found = predictor.finish(probability, (SIZE, SIZE))
    boxes = sorted((*np.min(p, axis=0), *np.max(p, axis=0)) for p in found.contours)
    assert np.allclose(boxes, [(0, 0, 7, 9), (30, 40, SIZE, 50)], atol=0.15)
    # A mask of millions of pixels is not magnified.
    (border,) = predictor.finish(np.ones((SIZE, SIZE), np.float32), (1100, 1200)).contours
    corners = [np.min(border, axis=0), np.max(border, axis=0)]
    assert np.allclose(corners, [(0, 0), (1200, 1100)], 0, 1)


def test_broken_model_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.json cannot be read"):
        load_info(tmp_path)
    with pytest.raises(InputError, match="broken at threshold"):
        load_info(write_model(tmp_path, threshold="high"))
    with pytest.raises(InputError, match="does not run"):
        Predictor(write_model(tmp_path, image_size=SIZE * 2))
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(InputError, match="broken at the whole file"):
        load_info(tmp_path)
    wanted = load_info(write_model(tmp_path)).digest
    with (tmp_path / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=f"has the digest [0-9a-f]{{64}}.* names {wanted}"):
        Predictor(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"model\.onnx cannot be read"):
        Predictor(tmp_path)
