"""A phantom of contrast-enhanced brain MRI, so that everything runs without a download.

Healthy anatomy is the ICBM 152 average brain inside nilearn; head, vessels, tumours and scanner
are simulated. Scores on it show that the pipeline works, not how it would do on patients.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import Grey, Mask
from tumorseg.imaging.render import outlines

Plane = NDArray[np.float32]  # intensities, 0 for air and about 1 for fat; shape (size, size)
# Orientation, grey values (size, size), and for each tumour its category and mask (size, size).
Slice = tuple[str, Grey, list[tuple[int, Mask]]]

DEFAULT_COUNTS = {"train": 240, "valid": 60, "test": 60}
TUMOURS_PER_SLICE = (0.12, 0.76, 0.12)  # probabilities of none, one and two
TEMPLATE = "https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/"
GLIOMA, MENINGIOMA = 1, 2
CATEGORIES = [
    {"id": 0, "name": "Tumor", "supercategory": "none"},
    {"id": GLIOMA, "name": "glioma-like", "supercategory": "Tumor"},
    {"id": MENINGIOMA, "name": "meningioma-like", "supercategory": "Tumor"},
]


def make_phantom(
    folder: Path, *, seed: int = 0, counts: Mapping[str, int] | None = None, size: int = 256
) -> None:
    """Writes a data set in the layout of a Roboflow COCO export: one folder a split.

    The same arguments give the same bytes, and slice k of a split does not depend on how many
    others there are. The folder appears only once it is complete.

    Args:
        folder: Where to write; must not exist yet.
        seed: Root of every random draw, at least 0.
        counts: Slices in "train", "valid" and "test", `DEFAULT_COUNTS` if None; 0 if left out.
        size: Side of the square slices, in pixels, at least 96; anatomy and tumours scale with it.

    Raises:
        InputError: If `folder` exists.
    """
    counts = DEFAULT_COUNTS if counts is None else counts
    if folder.exists():
        raise InputError(f"{folder} exists already; remove it or choose another folder.")
    sections = template_sections()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        complete = Path(scratch, folder.name)
        number = 1
        for stream, split in enumerate(DEFAULT_COUNTS):
            count = counts.get(split, 0)
            seeds = (np.random.SeedSequence(seed, spawn_key=(stream, k)) for k in range(count))
            slices = (random_slice(np.random.default_rng(s), sections, size) for s in seeds)
            write_split(complete / split, number, slices)
            number += count
        complete.rename(folder)


def write_split(folder: Path, first_number: int, slices: Iterable[Slice]) -> None:
    """Writes slices as JPEG, and `_annotations.coco.json` with one entry a tumour."""
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (orientation, grey, tumours) in enumerate(slices):
        # Leading digits would be read as a place in a scan, whose neighbours are near-duplicates.
        name = f"{orientation}_{first_number + image_id:04d}.jpg"
        Image.fromarray(grey).save(folder / name, quality=88)
        height, width = grey.shape
        entry = {"id": image_id, "license": 1, "file_name": name, "height": height, "width": width}
        images.append(entry)
        for category, mask in tumours:
            polygons = outlines(mask)
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
            box = np.r_[points.min(axis=0), np.ptp(points, axis=0)].round(2).tolist()
            entry = {"id": len(annotations), "image_id": image_id, "category_id": category}
            shape = {"bbox": box, "area": int(mask.sum()), "segmentation": polygons, "iscrowd": 0}
            annotations.append(entry | shape)
    coco = {
        "info": {"description": "tumorseg phantom: simulated tumours in the ICBM 152 brain"},
        "licenses": [{"id": 1, "url": TEMPLATE, "name": "ICBM 152 (MNI, McGill)"}],
        "categories": CATEGORIES,
        "images": images,
        "annotations": annotations,
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(coco), encoding="utf-8")


def template_sections() -> dict[str, list[Plane]]:
    """Cuts the ICBM 152 T1 average (Fonov et al., NeuroImage 2011) into sections rich in brain.

    They are skull-stripped, float32 in [0, 1], 1 mm a pixel, with superior or anterior side up.
    """
    # nilearn takes seconds to import; only those who make a phantom should wait for it.
    from nilearn.datasets import load_mni152_template

    volume = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)  # (x, y, z) = R, A, S
    sections = {}
    for axis, orientation in enumerate(("sagittal", "coronal", "axial")):
        planes = [np.rot90(plane) for plane in np.moveaxis(volume, axis, 0)]
        areas = np.array([np.count_nonzero(plane > 0.2) for plane in planes])
        sections[orientation] = [planes[i] for i in np.flatnonzero(areas > 0.6 * areas.max())]
    return sections


def random_slice(rng: np.random.Generator, sections: dict[str, list[Plane]], size: int) -> Slice:
    """Draws one slice of `size` pixels a side; the masks of its tumours do not overlap."""
    orientation = str(rng.choice(list(sections)))
    section = sections[orientation][rng.integers(len(sections[orientation]))]
    tissue = deform(rng, section, size, upwards=0 if orientation == "axial" else 0.1)
    brain = ndimage.binary_fill_holes(largest_region(tissue > 0.2))
    # T1 contrast with fluid dark and brain mid-grey, so that enhancement stands out.
    fluid, white_matter = rng.uniform(0.08, 0.2), rng.uniform(0.4, 0.55)
    stretched = np.clip((tissue - 0.45) / 0.5, 0, 1) ** rng.uniform(0.6, 1.4)
    image = fluid + (white_matter - fluid) * stretched
    image = add_head(rng, image, brain, face=orientation != "axial")
    image = add_vessels(rng, image, brain)

    tumours: list[tuple[int, Mask]] = []
    room = brain
    for _ in range(rng.choice(3, p=TUMOURS_PER_SLICE)):
        category = GLIOMA if rng.random() < 0.6 else MENINGIOMA
        image, mask = add_tumour(rng, image, brain, room, category)
        tumours.append((category, mask))
        room = room & (distance_to(mask) > 3 * size / 256)

    image = cv2.GaussianBlur(image, (0, 0), 0.6 * size / 256)  # the scanner's own resolution
    # The smooth unevenness of a receive coil, then noise as a magnitude image has it: Gaussian in
    # both channels, then the modulus.
    image = image * np.exp(rng.uniform(0.05, 0.25) * smooth_noise(rng, len(image), 2))
    real, imaginary = rng.normal(0, rng.uniform(0.01, 0.035), (2, *image.shape))
    image = np.hypot(image + real, imaginary)
    white = np.percentile(image, 99.5) * rng.uniform(0.9, 1.1)
    return orientation, (np.clip(image / white, 0, 1) * 255).round().astype(np.uint8), tumours


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Plane:
    """Draws a smooth random field of spread near 1 with about `cells` bumps along each side."""
    coarse = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def distance_to(mask: Mask) -> Plane:
    """Measures for each pixel how far the nearest pixel of the mask is, in pixels."""
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def largest_region(mask: Mask) -> Mask:
    """Keeps the largest connected region of a mask that has at least one pixel."""
    labels, _ = ndimage.label(mask)
    return labels == np.bincount(labels[mask]).argmax()


def blend(image: Plane, value: Plane | float, weight: NDArray[Any], softness: float) -> Plane:
    """Paints `value` where `weight` is 1, its border blurred by `softness` pixels."""
    weight = cv2.GaussianBlur(weight.astype(np.float32), (0, 0), softness)
    return image + weight * (value - image)


def deform(rng: np.random.Generator, section: Plane, size: int, upwards: float) -> Plane:
    """Turns, scales, mirrors and bends a section, and moves it up by a fraction of the size."""
    rows, columns = np.indices((size, size), dtype=np.float32) / size - 0.5
    rows += upwards + rng.uniform(-0.03, 0.03)
    columns += rng.uniform(-0.03, 0.03)
    angle = np.deg2rad(rng.uniform(-12, 12))
    height, width = 256 / rng.uniform(1.0, 1.15, size=2)  # field of view, in millimetres
    across = (np.cos(angle) * columns - np.sin(angle) * rows) * width * rng.choice([-1, 1])
    down = (np.sin(angle) * columns + np.cos(angle) * rows) * height
    across += section.shape[1] / 2 + 3 * smooth_noise(rng, size, 5)
    down += section.shape[0] / 2 + 3 * smooth_noise(rng, size, 5)
    return cv2.remap(section, np.float32(across), np.float32(down), cv2.INTER_LINEAR)


def add_head(rng: np.random.Generator, image: Plane, brain: Mask, *, face: bool) -> Plane:
    """Surrounds the brain with dura, skull, scalp and, where `face`, the tissue below."""
    size, pixel = len(image), len(image) / 256
    corners = cv2.convexHull(cv2.findNonZero(brain.astype(np.uint8)))
    hull = cv2.fillConvexPoly(np.zeros((size, size), np.float32), corners, 1)
    vault = brain | (cv2.GaussianBlur(hull, (0, 0), 9 * pixel) > 0.4)  # skulls have no corners
    depth = distance_to(vault) / pixel
    skull = depth < rng.uniform(5, 9) * (1 + 0.15 * smooth_noise(rng, size, 6))
    inner = skull.copy()
    if face:
        lower = round(rng.uniform(0.3, 0.5) * size)
        inner[lower:] |= vault[:-lower]
    scalp = distance_to(inner) < pixel * rng.uniform(4, 10) * (1 + 0.2 * smooth_noise(rng, size, 6))
    marrow = np.abs(depth - 4) < 1
    dura = ~vault & (depth < 2.2) & (smooth_noise(rng, size, 8) > -0.2)
    muscle = 0.3 + 0.12 * smooth_noise(rng, size, 9) + 0.12 * smooth_noise(rng, size, 40)
    fat = rng.uniform(0.7, 1.0) * (1 + 0.08 * smooth_noise(rng, size, 24))
    head = np.where(inner, np.clip(muscle, 0.03, 1), np.where(scalp, fat, 0.01))
    head = np.where(skull, np.where(marrow, rng.uniform(0.1, 0.4), rng.uniform(0.03, 0.12)), head)
    head = np.where(dura, rng.uniform(0.35, 0.7), head)
    return np.where(vault, image, head).astype(np.float32)


def add_vessels(rng: np.random.Generator, image: Plane, brain: Mask) -> Plane:
    """Adds what enhances in every patient: thin bright vessels, and sinuses at the brain's edge."""
    pixel = len(image) / 256
    vessels = np.zeros(image.shape, np.uint8)
    inside, edge = np.argwhere(brain), np.argwhere(brain & (distance_to(~brain) <= 1.5))
    for _ in range(rng.integers(2, 9)):
        start = rng.choice(inside)[::-1]
        turns = rng.normal(0, 0.35, rng.integers(6, 22))
        headings = rng.uniform(0, 2 * np.pi) + np.cumsum(turns)
        path = start + 3 * pixel * np.cumsum(np.c_[np.cos(headings), np.sin(headings)], axis=0)
        width, shade = max(1, round(pixel * rng.uniform(0.6, 1.9))), int(rng.integers(90, 220))
        cv2.polylines(vessels, [path.round().astype(np.int32)], False, shade, width, cv2.LINE_AA)
    vessels[~brain] = 0
    for _ in range(rng.integers(0, 4)):
        row, column = (int(v) for v in rng.choice(edge))
        cv2.circle(vessels, (column, row), round(pixel * rng.uniform(2, 4.5)), 255, cv2.FILLED)
    return blend(image, rng.uniform(0.65, 1.0), vessels / 255, 0.5 * pixel)


def add_tumour(
    rng: np.random.Generator, image: Plane, brain: Mask, room: Mask, category: int
) -> tuple[Plane, Mask]:
    """Draws one tumour, with oedema around it that changes the image but not the mask.

    A glioma is irregular and often a bright rim around a dark core; a meningioma is smooth,
    homogeneous and at the brain's edge. Returns the new image, and the mask of rim and core
    together: one region inside `room`, the part of the brain that no other tumour takes.
    """
    size, pixel = len(image), len(image) / 256
    radius = pixel * np.exp(rng.uniform(np.log(7), np.log(32)))
    to_edge, to_other = distance_to(~brain), distance_to(brain & ~room)
    centres: NDArray[Any] = np.empty((0, 2))
    while not len(centres):
        near_edge = to_edge < (0.8 * radius if category == MENINGIOMA else np.inf)
        centres = np.argwhere(near_edge & (to_edge > 0.5 * radius) & (to_other > 1.6 * radius))
        radius *= 1 if len(centres) else 0.8  # smaller where it does not fit

    down, across = np.mgrid[:size, :size] - rng.choice(centres)[:, None, None]
    direction = np.arctan2(down, across)
    waves = np.arange(2, 8)[:, None, None]  # radial harmonics, the higher the weaker
    ripples = np.cos(waves * direction + rng.uniform(0, 2 * np.pi, waves.shape))
    ripples *= (0.35 if category == GLIOMA else 0.12) * rng.normal(size=waves.shape) / waves**1.2
    reach = np.clip(1 + ripples.sum(axis=0), 0.5, 1.6)
    inside = np.hypot(down, across) < radius * reach
    mask = ndimage.binary_fill_holes(largest_region(inside & room))

    spread = radius * rng.uniform(0.3, 1.2) * np.clip(1 + 0.4 * smooth_noise(rng, size, 8), 0.3, 2)
    oedema = np.exp(-((distance_to(mask) / spread) ** 2)) * room * rng.uniform(0.1, 0.4)
    image = image * (1 - oedema).astype(np.float32)

    enhanced = float(image[mask].mean()) + rng.uniform(0.2, 0.55)
    rough = 1 + rng.uniform(0.03, 0.12) * smooth_noise(rng, size, 32)
    image = blend(image, enhanced * rough, mask, 0.8 * pixel)
    if category == GLIOMA and rng.random() < 0.75:
        rim = radius * rng.uniform(0.2, 0.6) * (1 + 0.35 * smooth_noise(rng, size, 14))
        core = distance_to(~mask) > np.maximum(rim, 1.5 * pixel)
        image = blend(image, rng.uniform(0.1, 0.35) * rough, core, 1.2 * pixel)
    return image.astype(np.float32), mask
