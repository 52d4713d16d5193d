"""From networks and baselines to masks to counts: a row a method, seed and slice."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from tumorseg.core.params import EvaluateParams, TrainParams
from tumorseg.data import coco
from tumorseg.data.arrays import Slices, sizes, true_masks
from tumorseg.data.audit import copied_masks
from tumorseg.data.leakage import Thumbnails
from tumorseg.evaluation import baselines
from tumorseg.evaluation.calibration import Reliability, best_threshold
from tumorseg.evaluation.metrics import count, distances, lesions, score
from tumorseg.evaluation.results import ENSEMBLE, Comparison, Run
from tumorseg.imaging.preprocess import Mask, to_input, to_native
from tumorseg.training.networks import Probabilities, build_network


def load_network(
    name: str, training: TrainParams, weights: Path, params: EvaluateParams
) -> Probabilities:
    """A trained network as it is evaluated and served, from its safetensors."""
    network = build_network(name, training.network(name))
    network.load_state_dict(load_file(weights))
    return Probabilities(network, params.test_time_flips).eval()


@torch.inference_mode()
def probabilities(
    network: Probabilities, images: NDArray[np.uint8], batch_size: int = 16
) -> NDArray[np.float32]:
    """Tumour probabilities on the grid, computed on the GPU if there is one, in full float32.

    Args:
        network: In evaluation mode, on the CPU.
        images: Grey slices, uint8, shape (N, S, S).
        batch_size: Slices at a time.

    Returns:
        float32, shape (N, S, S).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = []
    # In full float32, like the service, not in TF32.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for start in range(0, len(images), batch_size):
            batch = np.stack([to_input(image) for image in images[start : start + batch_size]])
            parts.append(network(torch.from_numpy(batch).to(device))[:, 0].cpu().numpy())
    network.cpu()
    return np.concatenate(parts)


def at_native_size(found: NDArray[np.float32], rows: pd.DataFrame) -> Iterator[NDArray[np.float32]]:
    """Resizes probabilities on the grid to the images' own sizes."""
    for probability, size in zip(found, sizes(rows), strict=True):
        yield to_native(probability, size)


def score_masks(
    method: str,
    masks: Iterable[Mask],
    rows: pd.DataFrame,
    params: EvaluateParams,
    seed: int | None = None,
    unit: str | None = None,
) -> pd.DataFrame:
    """Counts and scores of one method, a row a slice, with its masks as run lengths.

    Args:
        method: Its name.
        masks: Its predictions, at the images' own sizes.
        rows: The manifest's rows of the slices.
        params: The evaluate section.
        seed: Of the network's training.
        unit: Of the distances; None leaves them out.
    """
    table = []
    for mask, truth, row in zip(masks, true_masks(rows), rows.itertuples(), strict=True):
        entry = {"method": method, "seed": seed, "split": row.split, "path": row.path}
        entry |= {"group": row.split_group, "category": row.categories}
        entry |= count(mask, truth) | lesions(mask, truth, params.lesion_overlap)
        if unit is not None:
            spacing = None
            if unit == "mm":
                height, width = str(row.spacing_mm).split("×")
                spacing = float(height), float(width)
            entry |= distances(mask, truth, spacing, params.surface_tolerance)
        table.append(entry | {"mask_rle": coco.encode(mask), "truth_rle": row.mask_rle})
    return score(pd.DataFrame(table).astype({"seed": "Int64"}))


def split_probabilities(
    networks: dict[tuple[str, int], Probabilities], slices: dict[str, Slices]
) -> Iterator[tuple[Run, dict[str, NDArray[np.float32]]]]:
    """Each run's probabilities on validation and test, and at last the mean of all runs'."""
    evaluated = ("valid", "test")
    total = {split: np.zeros(slices[split].images.shape, np.float32) for split in evaluated}
    for run, network in networks.items():
        found = {split: probabilities(network, slices[split].images) for split in evaluated}
        yield run, found
        for split in evaluated:
            total[split] += found[split]
    mean = {split: maps / np.float32(len(networks)) for split, maps in total.items()}
    yield (ENSEMBLE, None), mean


def compare(
    networks: dict[tuple[str, int], Probabilities],
    slices: dict[str, Slices],
    manifest: pd.DataFrame,
    thumbnails: Thumbnails,
    params: EvaluateParams,
) -> Comparison:
    """Scores networks and their mean on validation and test, the baselines on test alone."""
    rows = {split: manifest[manifest["split"] == split] for split in coco.SPLITS}
    unit = "mm" if rows["test"]["spacing_mm"].ne("").all() else "pixels"
    tables, thresholds = [], {}
    reliability: dict[str, Reliability] = defaultdict(Reliability)
    for (name, seed), found in split_probabilities(networks, slices):
        threshold = params.threshold
        if threshold == "validation":
            native = at_native_size(found["valid"], rows["valid"])
            threshold = best_threshold(native, true_masks(rows["valid"]))
        thresholds[name, seed] = threshold
        for split, maps in found.items():
            masks: Iterator[Mask] = (p >= threshold for p in at_native_size(maps, rows[split]))
            measured = unit if split == "test" else None
            tables.append(score_masks(name, masks, rows[split], params, seed, measured))
        for probability, truth in zip(
            at_native_size(found["test"], rows["test"]), true_masks(rows["test"]), strict=True
        ):
            reliability[name].add(probability, truth)
    train, test = slices["train"], slices["test"]
    for name, masks in {
        "copy": copied_masks(thumbnails, rows["train"], rows["test"]),
        "intensity": baselines.intensity(
            train.images, train.masks, test.images, sizes(rows["test"])
        ),
        "background": baselines.background(sizes(rows["test"])),
    }.items():
        tables.append(score_masks(name, masks, rows["test"], params, unit=unit))
    return Comparison(pd.concat(tables, ignore_index=True), thresholds, reliability, unit)
