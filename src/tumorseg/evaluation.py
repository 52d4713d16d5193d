"""From networks and controls to counts to the table: the comparison on the test split."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from tumorseg import coco, controls
from tumorseg.arrays import Slices, true_masks
from tumorseg.metrics import count, score, summarise
from tumorseg.networks import UNet, build_network
from tumorseg.paired import Difference, comparisons, verdict
from tumorseg.params import NETWORKS, EvaluateParams, TrainParams
from tumorseg.preprocess import Mask, to_input, to_native
from tumorseg.similarity import Thumbnails

TITLES = {
    "unet": "U-Net",
    "attention_unet": "Attention U-Net",
    "copy": "control: copy of the most similar train slice",
    "intensity": "control: best intensity band",
    "background": "control: all background",
}


def load_network(name: str, params: TrainParams, weights: Path) -> UNet:
    """A trained network in evaluation mode, from its safetensors."""
    network = build_network(name, params.network(name))
    network.load_state_dict(load_file(weights))
    return network.eval()


@torch.inference_mode()
def probabilities(
    network: torch.nn.Module, images: NDArray[np.uint8], batch_size: int = 16
) -> NDArray[np.float32]:
    """Tumour probabilities on the grid.

    Args:
        network: In evaluation mode.
        images: Grey slices, uint8, shape (N, S, S).
        batch_size: Slices at a time.

    Returns:
        float32, shape (N, S, S).
    """
    parts = []
    for start in range(0, len(images), batch_size):
        batch = np.stack([to_input(image) for image in images[start : start + batch_size]])
        parts.append(torch.sigmoid(network(torch.from_numpy(batch)))[:, 0].numpy())
    return np.concatenate(parts)


def network_masks(
    network: torch.nn.Module, slices: Slices, rows: pd.DataFrame, threshold: float
) -> Iterator[Mask]:
    """A network's masks at the images' own sizes, made the way the service makes them."""
    found = probabilities(network, slices.images)
    for probability, height, width in zip(found, rows["height"], rows["width"], strict=True):
        yield to_native(probability, (height, width)) >= threshold


def judge(method: str, masks: Iterable[Mask], rows: pd.DataFrame) -> pd.DataFrame:
    """Counts and scores of one method, a row a slice, with its masks as run lengths."""
    table = [
        {"method": method, "split": row.split, "path": row.path, "group": row.split_group}
        | count(mask, truth)
        | {"mask_rle": coco.encode(mask), "truth_rle": row.mask_rle}
        for mask, truth, row in zip(masks, true_masks(rows), rows.itertuples(), strict=True)
    ]
    return score(pd.DataFrame(table))


def compare(
    networks: dict[str, UNet],
    slices: dict[str, Slices],
    manifest: pd.DataFrame,
    thumbnails: Thumbnails,
    params: EvaluateParams,
) -> pd.DataFrame:
    """Judges the networks on the validation and test splits, and the controls on the test split.

    Returns:
        A row a method and slice: method, split, path, group, tp, fp, fn, tn, mask_rle, truth_rle,
        dice, iou. Counts are in pixels of each image's own size.
    """
    rows = {split: manifest[manifest["split"] == split] for split in coco.SPLITS}
    tables = [
        judge(
            name, network_masks(network, slices[split], rows[split], params.threshold), rows[split]
        )
        for name, network in networks.items()
        for split in ("valid", "test")
    ]
    train, test = slices["train"], slices["test"]
    for name, masks in {
        "copy": controls.copy(thumbnails, rows["train"], rows["test"]),
        "intensity": controls.intensity(train, test, rows["test"]),
        "background": controls.background(rows["test"]),
    }.items():
        tables.append(judge(name, masks, rows["test"]))
    return pd.concat(tables, ignore_index=True)


def reduce(
    comparison: pd.DataFrame, split: dict[str, Any], params: EvaluateParams
) -> dict[str, Any]:
    """The figures of reports/metrics.json: split → method → figure, and the winner.

    The winner has the highest mean Dice on the validation split; the test split has no say.

    Args:
        comparison: From `compare`.
        split: reports/split.json: which sides these are.
        params: The evaluate section.
    """
    figures: dict[str, Any] = {"split": {key: split[key] for key in ("method", "digest")}} | {
        str(split): {
            str(method): summarise(table, params.bootstrap_samples, params.seed)
            for method, table in part.groupby("method", sort=False)
        }
        for split, part in comparison.groupby("split", sort=False)
    }
    validation = figures["valid"]
    figures["winner"] = max(NETWORKS, key=lambda name: validation[name]["mean_dice"])
    test = comparison[comparison["split"] == "test"]
    pairs = [("attention_unet", "unet"), *((name, "copy") for name in NETWORKS)]
    figures["paired"] = comparisons(test, pairs, params.bootstrap_samples, params.seed)
    return figures


def verdicts(figures: dict[str, Any]) -> list[str]:
    """What the comparison on the test split shows and what it does not, a sentence a pair."""
    sentences = []
    for pair, found in figures["paired"].items():
        first, second = (TITLES[name].removeprefix("control: ") for name in pair.split("-"))
        sentences.append(verdict(Difference(**found), first, second))
    return sentences


def honesty_gap(
    figures: dict[str, Any], other: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """What mean Dice on test the official split flatters a method by, against the grouped one.

    Args:
        figures: Of this run, from `reduce`.
        other: Network → metric → value of the last runs with the other split of the same data.

    Returns:
        Method → official, grouped and gap; empty unless both splits were run.
    """
    if not other:
        return {}
    then = {name: scores["test_mean_dice"] for name, scores in other.items()}
    then["copy"] = next(iter(other.values()))["test_copy_mean_dice"]
    gaps = {}
    for method, before in then.items():
        pair = {"official": figures["test"][method]["mean_dice"], "grouped": before}
        if figures["split"]["method"] == "grouped":
            pair = {"official": before, "grouped": figures["test"][method]["mean_dice"]}
        gaps[method] = pair | {"gap": round(pair["official"] - pair["grouped"], 5)}
    return gaps


def table(figures: dict[str, Any]) -> str:
    """The comparison on the test split as a Markdown table."""
    split = f"{figures['split']['method']} test split"
    lines = [
        f"| {split} | mean Dice (95% CI) | mean IoU | micro Dice | micro IoU | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for method, row in figures["test"].items():
        interval = f"{row['mean_dice_low']:.3f}–{row['mean_dice_high']:.3f}"
        lines.append(
            f"| {TITLES[method]} | {row['mean_dice']:.3f} ({interval}) | {row['mean_iou']:.3f} "
            f"| {row['micro_dice']:.4f} | {row['micro_iou']:.4f} | {row['accuracy']:.2%} |"
        )
    return "\n".join(lines)
