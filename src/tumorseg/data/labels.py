"""Other labels for the same images: how far they agree with the present ones, and their use."""

from pathlib import Path
from typing import Any

import pandas as pd

from tumorseg.core.errors import InputError
from tumorseg.data import coco
from tumorseg.data.dataset import dvc, refuse_to_lose
from tumorseg.evaluation.metrics import count, score, summarise

KEPT = ("group", "slice_number", "spacing_mm", "taken_in")  # keys of an image, not of its labels


def compare_labels(folder: Path, data: Path) -> dict[str, dict[str, Any]]:
    """Measures the present labels against others, as if they were predictions of them.

    Args:
        folder: Holds train, valid and test, each with the others' `_annotations.coco.json`.
        data: Holds the images and the present labels.

    Returns:
        Split → the figures of `metrics.summarise`.

    Raises:
        InputError: The labels are missing, cannot be drawn, or are of other images.
    """
    return {split: _compare_split(folder / split, data / split) for split in coco.SPLITS}


def _compare_split(folder: Path, data: Path) -> dict[str, Any]:
    present, other = (_masks(where) for where in (data, folder))
    if different := sorted(present.keys() ^ other.keys()):
        (name, height, width) = different[0]
        raise InputError(
            f"{folder / coco.ANNOTATIONS}: differs from the present labels in which images it "
            f"lists, or in their sizes ({name}, {width}×{height}, and {len(different) - 1} others)"
        )
    counts = pd.DataFrame(
        count(coco.decode(present[key], *key[1:]), coco.decode(other[key], *key[1:]))
        for key in sorted(present)
    )
    return summarise(score(counts), samples=2000, seed=0)


def _masks(folder: Path) -> dict[tuple[str, int, int], str]:
    """File name, height and width → run lengths: a fraction of the masks' own size."""
    found = {}
    for image in coco.read_split(folder):
        try:
            if image.problem:
                raise ValueError(image.problem[1])
            found[image.file_name, image.height, image.width] = coco.image_rle(image)
        except ValueError as error:
            path = folder / coco.ANNOTATIONS
            raise InputError(f"{path}: {image.file_name}: {error}") from None
    return found


def use_labels(folder: Path, data: Path = Path("data")) -> None:
    """Puts other labels in the place of the present ones, and records that with `dvc add`.

    The images stay as they are, with what is known of their patients. `git commit data.dvc` records
    the new version.

    Raises:
        InputError: data/ holds changes that DVC has not recorded, or the labels cannot be used.
    """
    refuse_to_lose(data)
    try:
        for split in coco.SPLITS:
            known = {
                image.file_name: {key: image.entry[key] for key in KEPT if key in image.entry}
                for image in coco.read_split(data / split)
            }
            document = coco.read_document(folder / split / coco.ANNOTATIONS)
            coco.extend(document, known)
            coco.Document(document).save(data / split)
        dvc("add", data.name)
    except (OSError, InputError) as error:
        raise InputError(
            f"{error}; `dvc checkout --force {data.name}` brings back the present labels"
        ) from None


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        "| split | images | mean Dice (95% CI) | micro Dice |",
        "|---|---|---|---|",
    ]
    for split, row in figures.items():
        interval = f"{row['mean_dice_low']:.3f}–{row['mean_dice_high']:.3f}"
        lines.append(
            f"| {split} | {row['slices']} | {row['mean_dice']:.3f} ({interval}) "
            f"| {row['micro_dice']:.4f} |"
        )
    return "\n".join(lines)
