import struct
import subprocess
import sys
import zlib
from pathlib import Path

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


def test_decode_gives_the_grey_values():
    assert np.array_equal(decode(DISC).slices[0], disc())
    assert decode(JPEG).slices[0].shape == disc().shape
    assert np.array_equal(decode(encode(Image.fromarray(disc()).convert("RGB"))).slices[0], disc())


def test_decode_stretches_sixteen_bits():
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
        (scans(120, 90, 100), 413, "more than 100 scans"),
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
        "many scans",
    ],
)
def test_decode_rejects_with_a_sentence(data, status, word, recwarn):
    with pytest.raises(Rejected) as caught:
        decode(data)
    assert caught.value.status == status
    assert word in caught.value.sentence
    assert not recwarn.list


def test_probability_is_the_shared_path_to_the_model_and_back(predictor):
    values = to_input(to_grid(disc(), SIZE))[0]
    expected = 1 / (1 + np.exp(-4 * values))
    found = predictor.segment(disc())
    assert found.probability.shape == (SIZE, SIZE)
    assert found.probability.dtype == np.float32
    np.testing.assert_allclose(found.probability, expected, atol=1e-5)
    native = to_native(found.probability, disc().shape)
    assert np.array_equal(found.mask, native >= predictor.info.threshold)


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


def test_contours_lie_on_the_mask_wherever_it_is(predictor):
    probability = np.zeros((SIZE, SIZE), np.float32)
    probability[:9, :7] = probability[40:50, 30:] = 1
    found = predictor.finish(probability, (SIZE, SIZE))
    boxes = sorted((*np.min(p, axis=0), *np.max(p, axis=0)) for p in found.contours)
    assert np.allclose(boxes, [(0, 0, 7, 9), (30, 40, SIZE, 50)], atol=0.15)
    assert found.confidence == 1
    # A mask of millions of pixels is not magnified.
    large = predictor.finish(np.ones((SIZE, SIZE), np.float32), (1100, 1200))
    (border,) = large.contours
    assert np.allclose(
        [np.min(border, axis=0), np.max(border, axis=0)], [(0, 0), (1200, 1100)], 0, 1
    )


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


def test_serving_never_imports_training(tmp_path: Path):
    heavy = ("torch", "lightning", "mlflow", "prefect", "dvc", "albumentations", "pandas")
    code = (
        "import sys, tumorseg.serving.service\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    environment = {
        "BENTOML_HOME": str(tmp_path),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
