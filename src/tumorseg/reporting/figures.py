"""Every figure of a run: the report's charts and slices, attention maps, and the PNG overviews."""

import base64
import copy
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from tumorseg.core.files import atomic_path
from tumorseg.core.params import NETWORKS
from tumorseg.data import coco
from tumorseg.data.arrays import Slices, read_slice
from tumorseg.evaluation.results import TITLES
from tumorseg.imaging.preprocess import Mask, to_grid, to_input
from tumorseg.reporting.pictures import TRUTH, heatmap, outlined
from tumorseg.reporting.report_data import ReportData, over_seeds, seed_means
from tumorseg.training.augmentation import Policy
from tumorseg.training.networks import AttentionGate, UNet

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {"unet": "#0072B2", "attention_unet": "#D55E00", "ensemble": "#CC79A7"}
GREY = "#777777"
STYLE: Any = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "tumorseg",  # equal figures give equal bytes
}
WORST = 8
GOOD, BAD = 2, 2  # slices whose attention is shown


@matplotlib.rc_context(STYLE)
def png(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


@matplotlib.rc_context(STYLE)
def svg_url(figure: Figure) -> str:
    """A figure as a data URL of SVG."""
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(written.getvalue()).decode()


def _axes(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """A figure, its size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _label(by: str, stratum: str) -> str:
    """A stratum's short name: its bounds are in the table, and a `$` would begin a formula."""
    name = stratum.partition(" (")[0] if by == "size" else f"category {stratum}"
    return textwrap.shorten(name, 24, placeholder="…").replace("$", r"\$")


@matplotlib.rc_context(STYLE)
def scatter(dice: pd.DataFrame, across: str, up: str) -> Figure:
    """Dice of two methods on the same slices, one against the other, with the diagonal.

    Args:
        dice: From `tumorseg.reporting.report_data.over_seeds`.
        across: The method on the x axis.
        up: The method on the y axis.
    """
    figure, axis = _axes(4.6, 4.4)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axis.scatter(dice[across], dice[up], s=16, alpha=0.5, color="black", linewidths=0)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.set(xlabel=f"Dice of {TITLES[across]}", ylabel=f"Dice of {TITLES[up]}")
    return figure


@matplotlib.rc_context(STYLE)
def training_curves(histories: pd.DataFrame) -> Figure:
    """Loss (training dashed, validation solid) and validation Dice by epoch.

    Thin lines are single seeds; the thick one is their mean, as long as all of them trained.

    Args:
        histories: A row a network, seed and epoch: network, seed, epoch, train_loss, val_loss,
            val_dice.
    """
    figure, (upper, lower) = _axes(4.8, 6.4, 2, sharex=True)
    curves = [(upper, "train_loss", "--", ", training"), (upper, "val_loss", "-", ", validation")]
    for axis, column, dashes, which in [*curves, (lower, "val_dice", "-", "")]:
        for name, history in histories.groupby("network", sort=False):
            look: Any = {"color": COLOURS[str(name)], "linestyle": dashes}
            mean = seed_means(history)[column]
            if history["seed"].nunique() > 1:
                for _, one in history.groupby("seed"):
                    axis.plot(one["epoch"], one[column], linewidth=0.7, alpha=0.6, **look)
            marker = "o" if len(mean) == 1 else ""
            label = f"{TITLES[str(name)]}{which}"
            axis.plot(mean.index, mean, linewidth=2, marker=marker, label=label, **look)
    upper.set(ylabel="BCE + Dice loss")
    upper.set_ylim(bottom=0)
    upper.legend()
    lower.set(xlabel="epoch", ylabel="mean Dice on validation, on the grid", ylim=(0, 1))
    lower.legend(loc="lower right")
    return figure


@matplotlib.rc_context(STYLE)
def reliability(bins: pd.DataFrame) -> Figure:
    """The fraction of pixels that are tumour against the predicted probability.

    Args:
        bins: reports/calibration.csv of one region.
    """
    figure, (upper, lower) = _axes(4.8, 5.2, 2, sharex=True, height_ratios=[3.2, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    for name, rows in bins[bins["pixels"] > 0].groupby("method", sort=False):
        look: Any = {"color": COLOURS[str(name)]}
        shown = rows["mean_probability"], rows["tumour_fraction"]
        upper.plot(*shown, "o-", markersize=4, label=TITLES[str(name)], **look)
        lower.step((rows["low"] + rows["high"]) / 2, rows["pixels"], where="mid", **look)
    upper.set(ylabel="share of pixels that are tumour", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="upper left")
    lower.set(xlabel="probability that the network gave", ylabel="pixels", yscale="log")
    lower.yaxis.set_major_locator(LogLocator(numticks=4))
    lower.yaxis.set_minor_formatter(NullFormatter())
    return figure


@matplotlib.rc_context(STYLE)
def strata_dots(strata: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Mean Dice of methods in each stratum, with 95% intervals.

    Args:
        strata: reports/strata.csv.
        methods: Which to draw.
    """
    count = len(strata.drop_duplicates(["by", "stratum"]))
    figure, axis = _axes(5.2, 0.5 * count + 1.2)
    for index, name in enumerate(methods):
        rows = strata[strata["method"] == name]
        heights = np.arange(count) + 0.2 * (index - (len(methods) - 1) / 2)
        colour = COLOURS.get(name, GREY)
        label = TITLES[name].removeprefix("baseline: ").split(" of the ")[0]
        axis.hlines(heights, rows["mean_dice_low"], rows["mean_dice_high"], color=colour)
        axis.plot(rows["mean_dice"], heights, "o", color=colour, markersize=5, label=label)
    keys = zip(rows["by"], rows["stratum"], rows["slices"], strict=True)
    labels = [f"{_label(by, stratum)} ({slices})" for by, stratum, slices in keys]
    axis.set_yticks(range(count), labels)
    axis.set(xlim=(0, 1), ylim=(count - 0.5, -0.5), xlabel="mean Dice, with 95% CI")
    figure.legend(loc="outside upper center", ncols=len(methods))
    return figure


@matplotlib.rc_context(STYLE)
def comparison_chart(scored: pd.DataFrame, path: Path) -> None:
    """Draws every test slice's Dice by method, averaged over seeds, with the mean beside it."""
    dice = over_seeds(scored)
    methods = list(dict.fromkeys(scored["method"]))
    figure, axis = _axes(8, 0.8 * len(methods) + 1)
    jitter = np.random.default_rng(0)
    for height, method in enumerate(reversed(methods)):
        values = dice[method].to_numpy()
        colour = COLOURS.get(method, GREY)
        spread = height + jitter.uniform(-0.22, 0.22, len(values))
        axis.scatter(values, spread, s=9, alpha=0.35, color=colour, linewidths=0)
        axis.plot([values.mean()] * 2, [height - 0.3, height + 0.3], color=colour, linewidth=2.5)
        axis.text(1.03, height, f"{values.mean():.3f}", va="center", color=colour)
    axis.set_yticks(range(len(methods)), [TITLES[method] for method in reversed(methods)])
    axis.set(xlim=(-0.03, 1.03), xlabel="Dice of each test slice; bar and number are the mean")
    png(figure, path)


@matplotlib.rc_context(STYLE)
def augmentation_gallery(slices: Slices, policy: Policy, path: Path, count: int = 6) -> None:
    """Draws slices with tumour, each unchanged and with three augmentations of training."""
    chosen = np.flatnonzero(slices.masks.any(axis=(1, 2)))
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int)]
    rows = max(len(chosen), 1)
    figure, axes = _axes(8, 2 * rows, rows, 4, squeeze=False)
    for row, index in zip(axes, chosen, strict=False):
        image, mask = np.array(slices.images[index]), np.array(slices.masks[index])
        draws = [policy(image, mask, 3 * int(index) + draw) for draw in range(3)]
        for axis, (drawn, outline) in zip(row, [(image, mask), *draws], strict=True):
            _show(axis, drawn, {TRUTH: outline})
    axes[0, 0].set_title("original", fontsize=9)
    axes[0, 2].set_title("augmented, mask outlined", fontsize=9)
    png(figure, path)


@matplotlib.rc_context(STYLE)
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
    figure, axes = _axes(2.6 * count, 8.6, 3, count, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    by_slice = networks.set_index(["path", "method"])
    for (title, paths), row in zip(rows.items(), axes, strict=True):
        for name, axis in zip(paths, row, strict=False):
            image = read_slice(data / name)
            found = {COLOURS[network]: by_slice.loc[(name, network)] for network in NETWORKS}
            masks = {c: coco.decode(one["mask_rle"], *image.shape) for c, one in found.items()}
            truth = coco.decode(found[COLOURS["unet"]]["truth_rle"], *image.shape)
            _show(axis, image, {TRUTH: truth} | masks)
            scores = " / ".join(f"{one['dice']:.2f}" for one in found.values())
            axis.set_title(f"{title}: {scores}", fontsize=9)
    legend = {"truth": TRUTH} | {TITLES[name]: COLOURS[name] for name in NETWORKS}
    lines = [Line2D([], [], color=colour) for colour in legend.values()]
    figure.legend(lines, list(legend), loc="outside lower center", ncols=3)
    figure.suptitle("Test slices; Dice of U-Net / Attention U-Net", fontsize=11)
    png(figure, path)


def _show(axis: Axes, image: NDArray[np.uint8], outlined: dict[str, Mask]) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    for colour, mask in outlined.items():
        if mask.any():
            axis.contour(mask, [0.5], colors=[colour], linewidths=1.1)
    axis.axis("off")


def worst_cases(report: ReportData) -> list[dict[str, Any]]:
    """The test slices with the lowest Dice averaged over networks and seeds, lowest first.

    Of equally low ones, those with the larger tumour come first.

    Returns:
        A dict a slice: name, dice, the columns of `ReportData.test_slices`, and pictures with
        captions; masks are those of the winner's seed.
    """
    dice = over_seeds(report.test)[list(NETWORKS)]
    ranked = report.test_slices.loc[dice.index].assign(dice=dice.mean(axis=1))
    ranked = ranked.sort_values(["dice", "tumour_fraction"], ascending=[True, False], kind="stable")
    drawn = report.test[report.test["seed"] == report.figures["winner_seed"]]
    masks = drawn.set_index(["path", "method"])
    cases = []
    for path in ranked.head(WORST).index:
        grey = read_slice(report.data / path)
        truth = {TRUTH: coco.decode(masks.loc[(path, "unet"), "truth_rle"], *grey.shape)}
        pictures = [("image", outlined(grey, {})), ("true label", outlined(grey, truth))]
        for name in NETWORKS:
            mask = coco.decode(masks.loc[(path, name), "mask_rle"], *grey.shape)
            caption = f"{TITLES[name]}, Dice {dice[name][path]:.2f}"
            pictures.append((caption, outlined(grey, truth | {COLOURS[name]: mask})))
        cases.append({"name": path, "pictures": pictures} | ranked.loc[path].to_dict())
    return cases


@torch.inference_mode()
def attention_maps(network: UNet, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """The attention coefficients α of each gate (Oktay et al. 2018).

    Args:
        network: An Attention U-Net on the CPU, in evaluation mode.
        images: Grey slices on the network's grid, uint8, shape (N, S, S).

    Returns:
        A map a gate, from the coarsest to the finest: float32 in (0, 1), shape (N, H, W). With n
        levels and a space-to-depth factor d, H and W are S / (d · 2ⁿ⁻²) for the first gate and
        S / d for the last.
    """
    network = copy.deepcopy(network)
    maps: list[NDArray[np.float32]] = []

    def record(gate: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        maps.append(gate.coefficients(*inputs)[:, 0].numpy())

    for gate in network.gates:
        assert isinstance(gate, AttentionGate)
        gate.register_forward_hook(record)
    network(torch.from_numpy(np.stack([to_input(image) for image in images])))
    return maps


def attention_cases(report: ReportData) -> list[dict[str, Any]]:
    """Attention maps of each gate of the Attention U-Net, on its best and worst slices.

    Returns:
        A dict a slice with tumour: name, dice, and pictures with captions, from the coarsest gate
        to the finest.
    """
    rows = report.test[report.test["method"] == "attention_unet"]
    rows = rows[(rows["seed"] == report.figures["winner_seed"]) & (rows["tp"] + rows["fn"] > 0)]
    ranked = rows.sort_values(["dice", "path"], ascending=[False, True])
    chosen = pd.concat([ranked.head(GOOD), ranked[GOOD:].tail(BAD)])
    if chosen.empty:
        return []
    size = int(report.params["augment"]["image_size"])
    images = [read_slice(report.data / path) for path in chosen["path"]]
    maps = attention_maps(report.gated, np.stack([to_grid(image, size) for image in images]))
    cases = []
    for index, (row, grey) in enumerate(zip(chosen.itertuples(), images, strict=True)):
        truth, mask = (coco.decode(rle, *grey.shape) for rle in (row.truth_rle, row.mask_rle))
        both = {TRUTH: truth, COLOURS["attention_unet"]: mask}
        pictures = [("true label and prediction", outlined(grey, both))]
        for number, gate in enumerate(maps, start=1):
            alpha = gate[index]
            caption = f"gate {number}, {alpha.shape[0]}×{alpha.shape[1]}: "
            caption += f"α {alpha.min():.2f}–{alpha.max():.2f}, mean {alpha.mean():.2f}"
            pictures.append((caption, heatmap(grey, alpha)))
        cases.append({"name": row.path, "dice": row.dice, "pictures": pictures})
    return cases
