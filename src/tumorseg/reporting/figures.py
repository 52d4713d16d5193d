"""The pictures of a run: augmentation preview, training curves, comparison, predictions."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tumorseg.core.files import atomic_path
from tumorseg.core.params import NETWORKS
from tumorseg.data import coco
from tumorseg.data.arrays import Slices, read_slice
from tumorseg.evaluation.results import TITLES
from tumorseg.training.augmentation import Policy

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = {"unet": "#0072B2", "attention_unet": "#D55E00"}
TRUTH = "#009E73"


def augmentation_gallery(slices: Slices, policy: Policy, path: Path, count: int = 6) -> None:
    """Draws slices with tumour, each as it is and three times as training sees it."""
    chosen = np.flatnonzero(slices.masks.any(axis=(1, 2)))
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int)]
    figure, axes = plt.subplots(
        max(len(chosen), 1), 4, figsize=(8, 2 * max(len(chosen), 1)), squeeze=False
    )
    for row, index in zip(axes, chosen, strict=False):
        image, mask = np.array(slices.images[index]), np.array(slices.masks[index])
        _show(row[0], image, {TRUTH: mask})
        for draw, axis in enumerate(row[1:]):
            image_drawn, mask_drawn = policy(image, mask, 3 * int(index) + draw)
            _show(axis, image_drawn, {TRUTH: mask_drawn})
    axes[0, 0].set_title("as it is", fontsize=9)
    axes[0, 2].set_title("as training draws it, mask outlined", fontsize=9)
    _save(figure, path)


def training_curves(histories: pd.DataFrame, path: Path) -> None:
    """Draws loss and validation Dice of each network by epoch: seeds thin, `seed_means` thick.

    Args:
        histories: A row a network, seed and epoch.
        path: The PNG.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, history in histories.groupby("network", sort=False):
        colour, mean = COLOURS[str(name)], seed_means(history)
        left.plot(mean.index, mean["train_loss"], "--", color=colour, alpha=0.6)
        for axis, column in ((left, "val_loss"), (right, "val_dice")):
            axis.plot(mean.index, mean[column], color=colour, label=TITLES[str(name)])
            for _, one in history.groupby("seed"):
                axis.plot(one["epoch"], one[column], color=colour, alpha=0.4, linewidth=0.6)
    left.set(
        xlabel="epoch", ylabel="BCE + Dice loss", title="validation (solid), training (dashed)"
    )
    right.set(xlabel="epoch", ylabel="mean Dice on the grid", title="validation")
    right.set_ylim(0, 1)
    for axis in (left, right):
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def seed_means(history: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds by epoch, as far as all of them trained: it would jump where one stops.

    Args:
        history: Of one network: a row a seed and epoch.
    """
    trained = history.groupby("epoch")["seed"].transform("nunique")
    whole = history[trained == history["seed"].nunique()]
    return whole.groupby("epoch").mean(numeric_only=True)


def comparison_chart(scored: pd.DataFrame, path: Path) -> None:
    """Draws every test slice's Dice by method, seeds averaged, with the mean beside it."""
    methods = list(dict.fromkeys(scored["method"]))
    figure, axis = plt.subplots(figsize=(8, 0.8 * len(methods) + 1))
    jitter = np.random.default_rng(0)
    for height, method in enumerate(reversed(methods)):
        of_method = scored[scored["method"] == method]
        values = of_method.groupby("path")["dice"].mean().to_numpy()
        colour = COLOURS.get(method, "#777777")
        spread = height + jitter.uniform(-0.22, 0.22, len(values))
        axis.scatter(values, spread, s=9, alpha=0.35, color=colour, linewidths=0)
        axis.plot([values.mean()] * 2, [height - 0.3, height + 0.3], color=colour, linewidth=2.5)
        axis.annotate(
            f"{values.mean():.3f}", (1.03, height), va="center", color=colour, annotation_clip=False
        )
    axis.set_yticks(range(len(methods)), [TITLES[method] for method in reversed(methods)])
    axis.set(
        xlim=(-0.03, 1.03), xlabel="Dice of each test slice; the bar is the mean, printed right"
    )
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def prediction_gallery(comparison: pd.DataFrame, data: Path, path: Path, count: int = 4) -> None:
    """Draws the worst, median and best test slices with the true and both predicted outlines.

    Slices are ranked by the mean Dice of the two networks, among slices that hold tumour. Of
    several seeds the first is shown.
    """
    networks = comparison[comparison["method"].isin(NETWORKS) & (comparison["split"] == "test")]
    networks = networks[networks["seed"] == networks["seed"].iloc[0]]
    tumour = networks[networks["tp"] + networks["fn"] > 0]
    ranked = tumour.groupby("path")["dice"].mean().sort_values().index
    middle = max(len(ranked) // 2 - count // 2, 0)
    rows = {
        "worst": ranked[:count],
        "median": ranked[middle : middle + count],
        "best": ranked[-count:],
    }
    figure, axes = plt.subplots(3, count, figsize=(2.6 * count, 8.6), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    by_slice = networks.set_index(["path", "method"])
    for (title, paths), row in zip(rows.items(), axes, strict=True):
        for path_of_slice, axis in zip(paths, row, strict=False):
            image = read_slice(data / path_of_slice)
            masks = {
                COLOURS[name]: coco.decode(
                    by_slice.loc[(path_of_slice, name), "mask_rle"], *image.shape
                )
                for name in NETWORKS
            }
            truth = by_slice.loc[(path_of_slice, NETWORKS[0]), "truth_rle"]
            _show(axis, image, {TRUTH: coco.decode(truth, *image.shape)} | masks)
            scores = [by_slice.loc[(path_of_slice, name), "dice"] for name in NETWORKS]
            axis.set_title(f"{title}: {scores[0]:.2f} / {scores[1]:.2f}", fontsize=9)
    legend = {"truth": TRUTH} | {TITLES[name]: COLOURS[name] for name in NETWORKS}
    figure.legend(
        [plt.Line2D([], [], color=colour) for colour in legend.values()],
        [f"{title}" for title in legend],
        loc="lower center",
        ncols=3,
        frameon=False,
    )
    figure.suptitle("Test slices; Dice of U-Net / Attention U-Net", fontsize=11)
    _save(figure, path, rect=(0, 0.03, 1, 1))


def _show(axis: Axes, image: NDArray[np.uint8], outlined: dict[str, NDArray]) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    for colour, mask in outlined.items():
        if mask.any():
            axis.contour(mask, [0.5], colors=[colour], linewidths=1.1)
    axis.axis("off")


def _save(
    figure: Figure, path: Path, rect: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> None:
    figure.tight_layout(rect=rect)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
