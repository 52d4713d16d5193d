"""How well the service tells what is unlike its training data: photographs, phantoms, spoilt MRI.

`python benchmarks/familiarity.py --data FOLDER` fits on a COCO folder's train and valid images, and
prints what share of its test images is warned about (false alarms), and of other pictures
(detection), each as served. AUROC compares the distances alone, without a threshold. It does the
same for a model of the phantom, which then meets the folder's test images as strangers. Where
neighbouring slices lie on both sides of the split, other patients will raise more false alarms.

Photographs are random crops of the samples that scikit-learn and matplotlib install.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw
from scipy.stats import mannwhitneyu

from tumorseg.core.errors import InputError
from tumorseg.data.arrays import read_slice
from tumorseg.data.coco import SPLITS
from tumorseg.data.phantom import random_slice, template_sections
from tumorseg.imaging.decode import decode
from tumorseg.imaging.preprocess import Grey, to_grid
from tumorseg.monitoring.ood import OodDetector, describe

SAMPLES = (
    ("sklearn", "datasets/images/*.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
SUFFIXES = {".jpg", ".jpeg", ".png"}
Pictures = list[tuple[Grey, float]]  # grey values and the share that is coloured


def greys(folder: Path) -> list[Grey]:
    """All pictures of a folder as grey values.

    Raises:
        InputError: It holds none.
    """
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: holds no pictures; give a folder with train/, valid/, test/")
    return [read_slice(path) for path in paths]


def phantom_sides(size: int) -> dict[str, list[Grey]]:
    """Fresh phantom slices: 480 train, 120 valid and 120 test."""
    sections = template_sections()
    counts = dict(zip(SPLITS, (480, 120, 120), strict=True))
    return {
        split: [
            random_slice(np.random.default_rng([7, stream, k]), sections, size)[1]
            for k in range(count)
        ]
        for stream, (split, count) in enumerate(counts.items())
    }


def photographs(each: int = 10) -> Pictures:
    """Square crops of photographs, in colour, as the service decodes them."""
    rng = np.random.default_rng(0)
    found: Pictures = []
    for package, pattern in SAMPLES:
        for path in sorted(files(package).glob(pattern)):
            picture = Image.open(path).convert("RGB")
            for _ in range(each):
                side = int(rng.uniform(0.4, 1) * min(picture.size))
                left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
                file = BytesIO()
                picture.crop((left, top, left + side, top + side)).save(file, "PNG")
                study = decode(file.getvalue())
                found.append((study.slices[0], study.colour))
    return found


def page(rng: np.random.Generator) -> Grey:
    """A page of text, black on white."""
    image = Image.new("L", (640, 640), 255)
    draw = ImageDraw.Draw(image)
    size = int(rng.integers(12, 30))
    for top in range(10, 630, 2 * size):
        letters = rng.integers(97, 123, 80).astype(np.uint8).tobytes().decode()
        words = " ".join(letters[k : k + 7] for k in range(0, 80, 7))
        draw.text((20, top), words, fill=0, font_size=size)
    return np.asarray(image)


def grainy(grey: Grey, deviation: float) -> Grey:
    """A slice with Gaussian noise as coarse as the network's grid sees it."""
    noise = np.random.default_rng(int(grey.sum()) % 2**32).normal(0, deviation, (256, 256))
    noise = cv2.resize(noise, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.clip(grey + noise, 0, 255).astype(np.uint8)


def gamma(grey: Grey, exponent: float) -> Grey:
    """A slice in another exposure."""
    return (255 * (grey / 255) ** exponent).round().astype(np.uint8)


CHANGES: dict[str, Callable[[Grey], Grey]] = {
    "harmless: gamma 0.8": lambda grey: gamma(grey, 0.8),
    "harmless: gamma 1.25": lambda grey: gamma(grey, 1.25),
    "spoilt: turned by 90°": lambda grey: np.rot90(grey).copy(),
    "spoilt: turned by 180°": lambda grey: np.rot90(grey, 2).copy(),
    "spoilt: mirrored up–down": lambda grey: grey[::-1].copy(),
    "spoilt: inverted": lambda grey: 255 - grey,
    "spoilt: noise of 20 grey values": lambda grey: grainy(grey, 20),
    "spoilt: blurred, 1.2% of the side": lambda g: cv2.GaussianBlur(g, (0, 0), 0.012 * len(g)),
    "spoilt: 40% of the brightness": lambda grey: (grey * 0.4).astype(np.uint8),
}


def groups(test: list[Grey], strangers: tuple[str, list[Grey]]) -> Iterator[tuple[str, Pictures]]:
    """Everything that a model meets besides its own test slices, one kind at a time."""
    for name, change in CHANGES.items():
        yield name, [(change(grey), 0.0) for grey in test]
    yield strangers[0], [(grey, 0.0) for grey in strangers[1]]
    coloured = photographs()
    yield "photographs", coloured
    yield "photographs, grey", [(grey, 0.0) for grey, _ in coloured]
    rng = np.random.default_rng(1)
    yield "pages of text", [(page(rng), 0.0) for _ in range(60)]
    yield "noise alone", [(rng.integers(0, 256, (256, 256), np.uint8), 0.0) for _ in range(60)]
    yield "uniform", [(np.full((256, 256), v, np.uint8), 0.0) for v in range(0, 256, 15)]


def rows(
    sides: dict[str, list[Grey]], strangers: tuple[str, list[Grey]], size: int
) -> Iterator[str]:
    """Fits on train and valid, and yields the table's lines, and one on the cost."""
    train, valid = (np.stack([to_grid(g, size) for g in sides[s]]) for s in ("train", "valid"))
    detector = OodDetector(describe(train, valid))
    own = [detector.distance(grey) for grey in sides["test"]]
    begun = time.perf_counter()
    alarms = [bool(detector.assess(grey, 0.0).warnings) for grey in sides["test"]]
    cost = (time.perf_counter() - begun) / len(alarms) * 1e3
    yield f"| own test slices (false alarms) | {len(own)} | – | {np.mean(alarms):.1%} |"
    for name, pictures in groups(sides["test"], strangers):
        far = [detector.distance(grey) for grey, _ in pictures]
        area = mannwhitneyu(far, own).statistic / (len(far) * len(own))
        warned = [bool(detector.assess(grey, colour).warnings) for grey, colour in pictures]
        yield f"| {name} | {len(far)} | {area:.3f} | {np.mean(warned):.1%} |"
    yield f"\n{len(train)} train and {len(valid)} valid slices at {size}²; {cost:.2f} ms a slice"


def main() -> None:
    """Prints a table for a model of the folder, and one for a model of the phantom."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="train/, valid/, test/")
    parser.add_argument("--size", type=int, default=256, help="side of the network's grid, pixels")
    chosen = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        own = {split: greys(chosen.data / split) for split in SPLITS}
    except InputError as error:
        sys.exit(str(error))
    phantoms = phantom_sides(max(96, chosen.size))
    models: tuple[tuple[str, dict[str, list[Grey]], tuple[str, list[Grey]]], ...] = (
        (f"a model of {chosen.data.name}", own, ("phantoms", phantoms["test"])),
        ("a model of the phantom", phantoms, (f"{chosen.data.name}'s test slices", own["test"])),
    )
    for title, sides, strangers in models:
        print(f"\n| {title} meets | pictures | AUROC | warned about |\n|---|--:|--:|--:|")
        for row in rows(sides, strangers, chosen.size):
            print(row, flush=True)


if __name__ == "__main__":
    main()
