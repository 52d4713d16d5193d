"""Random transformations of image and mask together; only this module uses albumentations."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path
from tumorseg.core.params import AugmentParams

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
# (image, mask, seed) → (image, mask), each uint8 of shape (S, S).
Policy = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], Pair]


def save_policy(params: AugmentParams, path: Path) -> None:
    """Writes the augmentation policy as albumentations' JSON, for `load_policy`."""
    degrees, shear = params.rotation_degrees, params.shear_degrees
    policy = A.Compose(
        [
            A.HorizontalFlip(p=params.horizontal_flip_probability),
            A.VerticalFlip(p=params.vertical_flip_probability),
            A.Affine(
                rotate=(-degrees, degrees),
                translate_percent=(-params.shift, params.shift),
                shear=(-shear, shear),
                scale=(1 - params.zoom, 1 + params.zoom),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                p=params.affine_probability,
            ),
            A.RandomBrightnessContrast(
                brightness_limit=params.brightness,
                contrast_limit=params.contrast,
                p=params.intensity_probability,
            ),
            A.RandomGamma(
                gamma_limit=(100 * (1 - params.gamma), 100 * (1 + params.gamma)),
                p=params.intensity_probability,
            ),
            A.GaussNoise(std_range=(0.0, params.noise), p=params.intensity_probability),
            # One that is off is left out, so that the others' draws stay what they were without it.
            *(further for further in _degradations(params) if further.p),
        ]
    )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(policy.to_dict(), indent=2) + "\n")


def _degradations(params: AugmentParams) -> list[A.BasicTransform]:
    """Elastic deformation, and the ways in which nnU-Net (Isensee et al. 2021) degrades images."""
    side = params.image_size
    smooth = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
    return [
        A.ElasticTransform(alpha=side, sigma=side / 16, p=params.elastic_probability),
        A.Illumination("gaussian", (0.05, 0.2), p=params.bias_field_probability),
        A.GaussianBlur(sigma_limit=(0.5, 1.5), p=params.blur_probability),
        A.Downscale((0.5, 0.95), smooth, p=params.low_resolution_probability),
    ]


def load_policy(path: Path) -> Policy:
    """Reads a policy file; the same seed always gives the same transformation.

    Raises:
        InputError: It is damaged.
    """
    try:
        compose = A.from_dict(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged; run `dvc repro --force augment`") from error

    def apply(image: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int) -> Pair:
        # set_random_seed would give every transformation the same draws; these share one stream.
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = compose(image=image, mask=mask)
        return result["image"], result["mask"]

    return apply
