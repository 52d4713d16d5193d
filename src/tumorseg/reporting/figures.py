"""Every figure of a run: the report's charts and slices, attention maps, and the PNG overviews.

Charts are narrow, so that they stay legible on a telephone.
"""

import base64
import io
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor, nn

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path
from tumorseg.core.params import NETWORKS
from tumorseg.data import coco
from tumorseg.data.arrays import Slices, read_slice
from tumorseg.evaluation.paired import Difference
from tumorseg.evaluation.results import TITLES
from tumorseg.imaging.preprocess import Mask, mask_to_grid, to_grid, to_input
from tumorseg.reporting.report_data import ReportData, over_seeds, seed_means
from tumorseg.training.augmentation import Policy
from tumorseg.training.networks import AttentionGate, UNet

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {"unet": "#0072B2", "attention_unet": "#D55E00"}
TRUTH = "#009E73"
GREY = "#777777"
INK = "#1b1f24"
STYLE: Any = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "tumorseg",  # equal figures give equal bytes
}
WIDTH = 288  # pixels of a slice in the report; shown smaller, for screens with fine pixels
WORST = 8
GOOD, BAD = 2, 2  # slices whose attention is shown
PALETTE = "viridis"
OPACITY = 0.6  # of an attention map over its image


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


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _label(by: str, stratum: str) -> str:
    """A stratum's short name: its bounds are in the table, and a `$` would begin a formula."""
    name = stratum.partition(" (")[0] if by == "size" else f"category {stratum}"
    return textwrap.shorten(name, 24, placeholder="…").replace("$", r"\$")


@matplotlib.rc_context(STYLE)
def scatter(scored: pd.DataFrame, across: str, up: str) -> str:
    """Dice of two methods on the same slices, one against the other, with the diagonal.

    Args:
        scored: From `tumorseg.reporting.report_data.over_seeds`.
        across: The method on the x axis.
        up: The method on the y axis.
    """
    dice = scored.pivot(index="path", columns="method", values="dice")
    figure, axis = _chart(4.6, 4.4)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axis.scatter(dice[across], dice[up], s=16, alpha=0.5, color=INK, linewidths=0)
    axis.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
        xlabel=f"Dice of {TITLES[across]}",
        ylabel=f"Dice of {TITLES[up]}",
    )
    return svg_url(figure)


@matplotlib.rc_context(STYLE)
def histogram(scored: pd.DataFrame, first: str, second: str, found: Difference) -> str:
    """The distribution of differences in Dice over slices, with their mean and its interval."""
    dice = scored.pivot(index="path", columns="method", values="dice")
    gaps = (dice[first] - dice[second]).to_numpy(float)
    reach = max(float(np.abs(gaps).max()), abs(found.low), abs(found.high), 0.05)
    figure, axis = _chart(4.6, 4.4)
    axis.hist(gaps, np.linspace(-reach, reach, 32).tolist(), color="#b9c3cc")
    axis.axvline(0, color=GREY, linewidth=1)
    colour = COLOURS[first]
    axis.axvspan(found.low, found.high, color=colour, alpha=0.25, linewidth=0)
    axis.axvline(found.mean, color=colour, linewidth=2, label="mean, with its 95% CI")
    axis.legend(loc="upper left")
    axis.set(xlabel=f"Dice of {TITLES[first]} minus {TITLES[second]}", ylabel="slices")
    axis.margins(y=0.2)
    return svg_url(figure)


@matplotlib.rc_context(STYLE)
def forest(strata: pd.DataFrame, whole: Difference, first: str, second: str) -> str:
    """The difference in mean Dice over all slices and in each stratum, with 95% intervals."""
    lines = [("all", whole.mean, whole.low, whole.high, whole.slices)]
    lines += [
        (_label(row["by"], row["stratum"]), row["mean"], row["low"], row["high"], row["slices"])
        for row in strata.to_dict("records")
    ]
    figure, axis = _chart(4.6, 0.42 * len(lines) + 0.9)
    axis.axvline(0, color=GREY, linewidth=1)
    for height, (_, mean, low, high, _) in enumerate(lines):
        axis.plot([low, high], [height] * 2, color=INK, linewidth=1.6)
        axis.plot([mean], [height], "D" if height == 0 else "o", color=INK, markersize=6)
    axis.set_yticks(range(len(lines)), [f"{name} ({count})" for name, *_, count in lines])
    axis.set(
        ylim=(len(lines) - 0.5, -0.5),
        xlabel=f"mean Dice, {TITLES[first]}\nminus {TITLES[second]}",
    )
    return svg_url(figure)


@matplotlib.rc_context(STYLE)
def training_curves(histories: pd.DataFrame) -> Figure:
    """Loss (training dashed, validation solid) and validation Dice by epoch.

    Thin lines are single seeds; the thick one is their mean, as far as all of them trained.

    Args:
        histories: A row a network, seed and epoch: network, seed, epoch, train_loss, val_loss,
            val_dice.
    """
    figure = Figure(figsize=(4.8, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
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
def reliability(bins: pd.DataFrame) -> str:
    """The fraction of pixels that are tumour against the predicted probability.

    Args:
        bins: reports/calibration.csv of one region.
    """
    figure = Figure(figsize=(4.8, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
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
    return svg_url(figure)


@matplotlib.rc_context(STYLE)
def strata_dots(strata: pd.DataFrame, methods: list[str]) -> str:
    """Mean Dice of methods in each stratum, with 95% intervals.

    Args:
        strata: reports/strata.csv.
        methods: Which to draw.
    """
    places = strata.drop_duplicates(["by", "stratum"])
    keys = list(zip(places["by"], places["stratum"], strict=True))
    figure, axis = _chart(5.2, 0.5 * len(keys) + 1.2)
    for index, name in enumerate(methods):
        rows = strata[strata["method"] == name].set_index(["by", "stratum"]).reindex(keys)
        heights = np.arange(len(keys)) + 0.2 * (index - (len(methods) - 1) / 2)
        colour = COLOURS.get(name, GREY)
        label = TITLES[name].removeprefix("baseline: ").split(" of ")[0]
        axis.hlines(heights, rows["mean_dice_low"], rows["mean_dice_high"], color=colour)
        axis.plot(rows["mean_dice"], heights, "o", color=colour, markersize=5, label=label)
    labels = [f"{_label(*key)} ({n})" for key, n in zip(keys, places["slices"], strict=True)]
    axis.set_yticks(range(len(keys)), labels)
    axis.set(xlim=(0, 1), ylim=(len(keys) - 0.5, -0.5), xlabel="mean Dice, with 95% CI")
    figure.legend(loc="outside upper center", ncols=len(methods))
    return svg_url(figure)


@matplotlib.rc_context(STYLE)
def comparison_chart(scored: pd.DataFrame, path: Path) -> None:
    """Draws every test slice's Dice by method, averaged over seeds, with the mean beside it."""
    dice = over_seeds(scored)
    methods = list(dict.fromkeys(scored["method"]))
    figure, axis = _chart(8, 0.8 * len(methods) + 1)
    jitter = np.random.default_rng(0)
    for height, method in enumerate(reversed(methods)):
        values = dice.loc[dice["method"] == method, "dice"].to_numpy()
        colour = COLOURS.get(method, GREY)
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
    png(figure, path)


@matplotlib.rc_context(STYLE)
def augmentation_gallery(slices: Slices, policy: Policy, path: Path, count: int = 6) -> None:
    """Draws slices with tumour, each unchanged and with three augmentations of training."""
    chosen = np.flatnonzero(slices.masks.any(axis=(1, 2)))
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int)]
    rows = max(len(chosen), 1)
    figure = Figure(figsize=(8, 2 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    for row, index in zip(axes, chosen, strict=False):
        image, mask = np.array(slices.images[index]), np.array(slices.masks[index])
        draws = [policy(image, mask, 3 * int(index) + draw) for draw in range(3)]
        for axis, (drawn, outline) in zip(row, [(image, mask), *draws], strict=True):
            _show(axis, drawn, {TRUTH: outline})
    axes[0, 0].set_title("as it is", fontsize=9)
    axes[0, 2].set_title("as training draws it, mask outlined", fontsize=9)
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
    figure = Figure(figsize=(2.6 * count, 8.6), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    by_slice = networks.set_index(["path", "method"])
    for (title, paths), row in zip(rows.items(), axes, strict=True):
        for path_of_slice, axis in zip(paths, row, strict=False):
            image = read_slice(data / path_of_slice)
            found = {name: by_slice.loc[(path_of_slice, name)] for name in NETWORKS}
            runs = {TRUTH: found[NETWORKS[0]]["truth_rle"]}
            runs |= {COLOURS[name]: row_of["mask_rle"] for name, row_of in found.items()}
            _show(axis, image, {c: coco.decode(rle, *image.shape) for c, rle in runs.items()})
            scores = " / ".join(f"{row_of['dice']:.2f}" for row_of in found.values())
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
        A dict a slice: name, the columns of `ReportData.test_slices`, and pictures with captions.
    """
    scored = over_seeds(report.test)
    dice = scored[scored["method"].isin(report.networks)].pivot(
        index="path", columns="method", values="dice"
    )
    ranked = report.test_slices.loc[dice.index].assign(dice=dice.mean(axis=1))
    ranked = ranked.sort_values(["dice", "tumour_fraction"], ascending=[True, False], kind="stable")
    cases = []
    for path in map(str, ranked.head(WORST).index):
        grey = read_slice(report.data / path)
        rows = report.test[report.test["path"] == path]
        truth = coco.decode(rows["truth_rle"].iloc[0], *grey.shape)
        pictures = [("image", outlined(grey, {})), ("true label", outlined(grey, {TRUTH: truth}))]
        for name in report.networks:
            shown = (rows["method"] == name) & (rows["seed"] == report.shown_seed(name))
            mask = coco.decode(rows.loc[shown, "mask_rle"].iloc[0], *grey.shape)
            caption = f"{TITLES[name]}, Dice {dice[name][path]:.2f}"
            caption += "" if mask.any() else "; finds nothing"
            pictures.append((caption, outlined(grey, {TRUTH: truth, COLOURS[name]: mask})))
        facts: dict[str, Any] = {str(key): value for key, value in ranked.loc[path].items()}
        cases.append({"name": path, "pictures": pictures} | facts)
    return cases


@torch.inference_mode()
def attention_maps(network: UNet, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """The attention coefficients α of each gate (Oktay et al. 2018).

    Args:
        network: In evaluation mode; it is left unchanged.
        images: Grey slices on the network's grid, uint8, shape (N, S, S).

    Returns:
        A map a gate, from the coarsest to the finest: float32 in (0, 1), shape (N, H, W). With n
        levels and a space-to-depth factor d, H and W are S / (d · 2ⁿ⁻²) for the first gate and
        S / d for the last.

    Raises:
        InputError: The network has no attention gate.
    """
    gates = [gate for gate in network.gates if isinstance(gate, AttentionGate)]
    if not gates:
        raise InputError("the network has no attention gates: only an Attention U-Net has maps")
    maps: list[NDArray[np.float32]] = []

    def record(gate: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(gate, AttentionGate)
        maps.append(gate.coefficients(*given)[:, 0].float().cpu().numpy())

    with ExitStack() as hooks:
        for gate in gates:
            hooks.enter_context(gate.register_forward_hook(record))
        batch = np.stack([to_input(image) for image in images])
        network(torch.from_numpy(batch).to(next(network.parameters()).device))
    return maps


def attention_cases(report: ReportData) -> list[dict[str, Any]]:
    """Attention maps of each gate of the Attention U-Net, on its best and worst slices.

    Returns:
        A dict a slice: name, Dice, whether it is a good one, and pictures with captions, from the
        coarsest gate to the finest.
    """
    rows = report.test[report.test["method"] == "attention_unet"]
    rows = rows[(rows["seed"] == report.gated_seed) & (rows["tp"] + rows["fn"] > 0)]
    chosen = _extremes(rows.sort_values(["dice", "path"], ascending=[False, True]))
    if chosen.empty:
        return []
    size = int(report.params["augment"]["image_size"])
    images = [read_slice(report.data / path) for path in chosen["path"]]
    maps = attention_maps(report.gated, np.stack([to_grid(image, size) for image in images]))
    cases = []
    for index, (row, grey) in enumerate(zip(chosen.itertuples(), images, strict=True)):
        masks = {
            TRUTH: coco.decode(str(row.truth_rle), *grey.shape),
            COLOURS["attention_unet"]: coco.decode(str(row.mask_rle), *grey.shape),
        }
        pictures = [("true label and prediction", outlined(grey, masks))]
        for number, gate in enumerate(maps, start=1):
            alpha = gate[index]
            caption = f"gate {number}, {alpha.shape[0]}×{alpha.shape[1]}: "
            caption += f"α {alpha.min():.2f}–{alpha.max():.2f}, mean {alpha.mean():.2f}"
            pictures.append((caption, _heatmap(grey, alpha)))
        cases.append({"name": row.path, "dice": row.dice, "good": row.good, "pictures": pictures})
    return cases


def _extremes(ranked: pd.DataFrame) -> pd.DataFrame:
    """The first and last rows, of different groups where there are enough."""
    count = GOOD + BAD
    best, worst = ranked.drop_duplicates("group"), ranked.drop_duplicates("group", keep="last")
    if len(best) < count:
        best = worst = ranked
    bad = worst.tail(min(BAD, len(worst) // 2))
    good = best[~best["path"].isin(bad["path"])].head(GOOD)
    return pd.concat([good.assign(good=True), bad.assign(good=False)])


def colour_bar() -> str:
    """The colours of α from 0 to 1, as stops of a CSS gradient."""
    return ", ".join(map(to_hex, matplotlib.colormaps[PALETTE](np.linspace(0, 1, 9))))


def outlined(grey: NDArray[np.uint8], masks: dict[str, Mask]) -> str:
    """A slice with masks outlined in their colours, as a data URL.

    Args:
        grey: uint8, shape (H, W).
        masks: Colour → mask, bool, shape (H, W).
    """
    drawn: NDArray[np.uint8] = cv2.cvtColor(to_grid(grey, WIDTH), cv2.COLOR_GRAY2BGR)
    for colour, mask in masks.items():
        small = mask_to_grid(mask, WIDTH)
        borders, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        # Twice as bright as on paper, since it lies on dark tissue.
        blue_green_red = [255 * (0.35 + 0.65 * part) for part in to_rgb(colour)[::-1]]
        cv2.drawContours(drawn, borders, -1, blue_green_red, 2, cv2.LINE_AA)
    return _jpeg_url(drawn)


def _heatmap(grey: NDArray[np.uint8], alpha: NDArray[np.float32]) -> str:
    """A slice under an attention map, whose cells stay visible, as a data URL."""
    under = cv2.cvtColor(to_grid(grey, WIDTH), cv2.COLOR_GRAY2BGR).astype(np.float32)
    large = cv2.resize(alpha, (WIDTH, WIDTH), interpolation=cv2.INTER_NEAREST)
    over = 255 * matplotlib.colormaps[PALETTE](large)[..., 2::-1]
    return _jpeg_url((OPACITY * over + (1 - OPACITY) * under).astype(np.uint8))


def _jpeg_url(picture: NDArray[np.uint8]) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, 82]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, encoded = cv2.imencode(".jpg", picture, options)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
