"""Properties of masks and pictures, checked by hypothesis."""

import cv2
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tumorseg.data import coco
from tumorseg.data.leakage import normalised, similar_pairs, thumbnail
from tumorseg.imaging.preprocess import mask_to_grid, to_grid, to_native
from tumorseg.imaging.render import outlines

PROPERTY = settings(max_examples=80)
sides = st.integers(16, 90)


@st.composite
def masks(draw, smooth=False) -> np.ndarray:
    """Up to three shapes, such as tumours have, anywhere in a picture of any proportion."""
    canvas = np.zeros((draw(sides), draw(sides)), np.uint8)
    height, width = canvas.shape
    for _ in range(draw(st.integers(0, 3))):
        centre = (draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1)))
        axes = (draw(st.integers(2, 20)), draw(st.integers(2, 20)))
        cv2.ellipse(canvas, centre, axes, draw(st.integers(0, 180)), 0, 360, 1, -1)
    if not smooth and draw(st.booleans()):
        noise = np.random.default_rng(draw(st.integers(0, 99))).random(canvas.shape) > 0.5
        canvas &= noise.astype(np.uint8)
    return canvas.astype(bool)


def read_back(segmentation, shape) -> np.ndarray:
    image = coco.LabelledImage("a.png", shape[1], shape[0], [{"segmentation": segmentation}])
    return coco.decode(coco.image_rle(image), *shape)


@PROPERTY
@given(masks())
def test_run_lengths_lose_nothing(mask) -> None:
    assert np.array_equal(coco.decode(coco.encode(mask), *mask.shape), mask)
    size = list(mask.shape)
    assert np.array_equal(read_back({"size": size, "counts": coco.encode(mask)}, mask.shape), mask)
    flat = mask.ravel(order="F")
    borders = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *borders.tolist(), flat.size]).tolist()
    runs = [0, *runs] if flat[0] else runs  # run lengths begin with background
    assert np.array_equal(read_back({"size": size, "counts": runs}, mask.shape), mask)


@PROPERTY
@given(masks(smooth=True))
def test_outlines_move_the_border_by_less_than_a_pixel(mask) -> None:
    polygons = outlines(mask)
    assume(polygons)
    found = read_back(polygons, mask.shape)
    drawn, square = mask.astype(np.uint8), np.ones((3, 3))
    # Where a mask meets the frame it has a border too, so there is background outside.
    border = cv2.dilate(drawn, square) != cv2.erode(
        drawn, square, borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    # Outlines are outer borders: holes are not theirs to keep.
    outer, _ = cv2.findContours(drawn, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outer, -1, 1, -1)
    assert not ((found != drawn.astype(bool)) & ~border).any()


@PROPERTY
@given(masks(smooth=True), st.sampled_from([32, 48, 64, 128]))
def test_picture_and_mask_stay_aligned_on_the_grid(mask, size) -> None:
    picture = mask.astype(np.uint8) * 255
    grid = to_grid(picture, size)
    label = mask_to_grid(mask, size)
    # The picture of a mask, cut at half, is the mask, but for rounding on the border itself.
    sure = np.abs(grid.astype(int) - 127.5) > 2
    assert np.array_equal((grid >= 128)[sure], label.astype(bool)[sure])


@PROPERTY
@given(masks(smooth=True))
def test_to_native_undoes_to_grid(mask) -> None:
    assume(mask.sum() > 60)
    size = 2 * max(mask.shape)  # finer than the picture: nothing is lost by the resolution
    found = to_native(to_grid(mask.astype(np.float32), size), mask.shape) >= 0.5
    assert np.array_equal(found, mask)


@PROPERTY
@given(st.integers(0, 10**6), sides, st.floats(0.3, 0.9), st.integers(0, 20))
def test_similarity_ignores_gain_and_offset(seed, side, gain, offset) -> None:
    picture = np.random.default_rng(seed).integers(0, 255, (side, side)).astype(np.uint8)
    other = (picture * gain + offset).astype(np.uint8)
    pair = np.stack([thumbnail(picture), thumbnail(other)])
    found, values = similar_pairs(pair, np.arange(2), 0.97)
    assert found.tolist() == [[0, 1]] and values[0] > 0.97
    assert np.allclose(np.linalg.norm(normalised(pair), axis=1), 1, atol=1e-4)
