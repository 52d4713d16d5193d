"""From a picture to the network's input and back: the one path that training and serving share."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]

COLOURED = 0.05  # share of coloured pixels from which a picture counts as coloured
_STEP = 4  # in each direction: every 16th pixel shows the share well enough
_CLEARLY = 24  # grey levels between channels: more than JPEG's artefacts in a grey picture


def to_grey(image: Image.Image) -> Grey:
    """Turns any Pillow image into one grey channel.

    16-bit and float images are scaled from their own range, since their absolute values mean
    nothing without DICOM's window; transparent pixels become black, like the air around a head.

    Args:
        image: An image of any mode; its EXIF orientation is applied.

    Returns:
        Grey values, uint8, shape (H, W).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = values.min(), values.max()
        return ((values - low) * (255.0 / max(high - low, 1e-12))).round().astype(np.uint8)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return np.asarray(image.convert("L"))


def coloured_share(image: Image.Image) -> float:
    """The share of a loaded image's pixels whose channels differ clearly, in [0, 1]."""
    if image.mode in ("L", "LA", "1") or image.mode.startswith(("I", "F")):
        return 0.0
    width, height = (max(side // _STEP, 1) for side in image.size)
    sample = image.resize((width, height), Image.Resampling.NEAREST)
    red, green, blue = map(np.asarray, sample.convert("RGB").split())
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    return float(np.mean(brightest - darkest > _CLEARLY))


def to_square(plane: NDArray[Any]) -> NDArray[Any]:
    """Pads an image or a mask, shape (H, W), with zeros to a square around it."""
    height, width = plane.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), plane.dtype)
    square[top : top + height, left : left + width] = plane
    return square


def to_grid(plane: NDArray[Any], size: int) -> NDArray[Any]:
    """Brings an image or a mask to the network's grid: padded to a square, then resized.

    The same call serves image and mask, so that they stay aligned to a fraction of a pixel.

    Args:
        plane: uint8 or float32, shape (H, W).
        size: The side of the grid, in pixels.

    Returns:
        The same dtype, shape (size, size).
    """
    square = to_square(plane)
    # Area averaging when shrinking: anything else aliases the noise.
    how = cv2.INTER_AREA if len(square) > size else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), interpolation=how)


def mask_to_grid(mask: Mask, size: int) -> NDArray[np.uint8]:
    """Brings a mask of shape (H, W) to the grid: 1 where at least half of a cell is tumour."""
    return (to_grid(mask.astype(np.float32), size) >= 0.5).astype(np.uint8)


def to_input(grid: Grey) -> NDArray[np.float32]:
    """Normalises one slice by its own mean and standard deviation.

    MR intensities have no unit; the scanner's gain must not matter.

    Args:
        grid: uint8, shape (S, S).

    Returns:
        float32, shape (1, S, S); a constant slice becomes zeros.
    """
    values = grid.astype(np.float32)
    return ((values - values.mean()) / max(float(values.std()), 1.0))[None]


def to_native(probability: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Brings a probability map from the grid back to the picture's own size (undoes `to_grid`).

    Args:
        probability: float32 in [0, 1], shape (S, S).
        shape: The picture's (H, W), in pixels.

    Returns:
        float32, shape (H, W).
    """
    height, width = shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = cv2.resize(probability, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(square[top : top + height, left : left + width])
