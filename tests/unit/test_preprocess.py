import numpy as np
import pytest
from PIL import Image

from tumorseg.imaging.preprocess import to_grey, to_input
from tumorseg.imaging.render import outlines

RAMP = np.tile(np.arange(0, 240, 3, dtype=np.uint8), (64, 1))  # 64 × 80


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_the_same_grey(mode: str) -> None:
    image = Image.fromarray(RAMP)
    # From L, Pillow makes a palette of greys; from RGB it would dither.
    image = image.convert("P") if mode == "P" else image.convert("RGB").convert(mode)
    grey = to_grey(image)
    assert grey.dtype == np.uint8 and grey.shape == RAMP.shape
    assert np.abs(grey.astype(int) - RAMP).max() <= 2


def test_sixteen_bit_is_scaled_from_its_own_range() -> None:
    grey = to_grey(Image.fromarray(RAMP.astype(np.uint16) * 100 + 7))
    assert grey.min() == 0 and grey.max() == 255
    assert np.all(np.diff(grey[0].astype(int)) > 0)


def test_transparent_pixels_become_black() -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:, :4, 3] = 0
    grey = to_grey(Image.fromarray(pixels))
    assert (grey[:, :4] == 0).all() and (grey[:, 4:] == 255).all()


def test_gain_and_offset_of_the_scanner_do_not_matter() -> None:
    grid = np.random.default_rng(0).integers(20, 100, (32, 32)).astype(np.uint8)
    assert np.allclose(to_input(grid), to_input(grid * 2 + 5), atol=1e-5)
    assert to_input(grid).shape == (1, 32, 32) and to_input(grid).dtype == np.float32
    assert (to_input(np.full((4, 4), 9, np.uint8)) == 0).all()


def test_outlines_run_along_pixel_edges() -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:20, 5:25] = True
    mask[30:33, 40:43] = True
    polygons = [np.reshape(polygon, (-1, 2)) for polygon in outlines(mask)]
    boxes = sorted((*p.min(axis=0), *p.max(axis=0)) for p in polygons)
    assert np.allclose(boxes, [(5, 10, 25, 20), (40, 30, 43, 33)], atol=0.15)
    assert outlines(np.zeros((9, 9), bool)) == []
