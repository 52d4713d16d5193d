"""The charts of the report, each a narrow SVG that is still legible on a telephone."""

import base64
import io
import textwrap
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tumorseg.evaluation.paired import Difference
from tumorseg.evaluation.results import TITLES
from tumorseg.reporting.figures import COLOURS
from tumorseg.reporting.inputs import Training

QUIET = "#777777"
INK = "#1b1f24"
STYLE: Any = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "tumorseg",  # the same figures, the same bytes
}


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _label(by: str, stratum: str) -> str:
    """A stratum beside its line: bounds are in the table, and a `$` would begin a formula."""
    name = stratum.partition(" (")[0] if by == "size" else f"category {stratum}"
    return textwrap.shorten(name, 24, placeholder="…").replace("$", r"\$")


def _url(figure: Figure) -> str:
    """A figure as a data URL."""
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(written.getvalue()).decode()


@matplotlib.rc_context(STYLE)
def scatter(scored: pd.DataFrame, across: str, up: str) -> str:
    """Dice of two methods on the same slices, one against the other, with the diagonal.

    Args:
        scored: From `tumorseg.reporting.inputs.over_seeds`.
        across: The method on the x axis.
        up: The method on the y axis.
    """
    dice = scored.pivot(index="path", columns="method", values="dice")
    figure, axis = _chart(4.6, 4.4)
    axis.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    axis.scatter(dice[across], dice[up], s=16, alpha=0.5, color=INK, linewidths=0)
    axis.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
        xlabel=f"Dice of {TITLES[across]}",
        ylabel=f"Dice of {TITLES[up]}",
    )
    return _url(figure)


@matplotlib.rc_context(STYLE)
def histogram(scored: pd.DataFrame, first: str, second: str, found: Difference) -> str:
    """How the differences in Dice are spread over slices, with their mean and its interval."""
    dice = scored.pivot(index="path", columns="method", values="dice")
    gaps = (dice[first] - dice[second]).to_numpy(float)
    reach = max(float(np.abs(gaps).max()), abs(found.low), abs(found.high), 0.05)
    figure, axis = _chart(4.6, 4.4)
    axis.hist(gaps, np.linspace(-reach, reach, 32).tolist(), color="#b9c3cc")
    axis.axvline(0, color=QUIET, linewidth=1)
    colour = COLOURS[first]
    axis.axvspan(found.low, found.high, color=colour, alpha=0.25, linewidth=0)
    axis.axvline(found.mean, color=colour, linewidth=2, label="mean, with its 95% CI")
    axis.legend(loc="upper left")
    axis.set(xlabel=f"Dice of {TITLES[first]} minus {TITLES[second]}", ylabel="slices")
    axis.margins(y=0.2)
    return _url(figure)


@matplotlib.rc_context(STYLE)
def forest(strata: pd.DataFrame, whole: Difference, first: str, second: str) -> str:
    """The difference in mean Dice over all slices and in each stratum, with 95% intervals."""
    lines = [("all", whole.mean, whole.low, whole.high, whole.slices)]
    lines += [
        (_label(row["by"], row["stratum"]), row["mean"], row["low"], row["high"], row["slices"])
        for row in strata.to_dict("records")
    ]
    figure, axis = _chart(4.6, 0.42 * len(lines) + 0.9)
    axis.axvline(0, color=QUIET, linewidth=1)
    for height, (_, mean, low, high, _) in enumerate(lines):
        axis.plot([low, high], [height] * 2, color=INK, linewidth=1.6)
        axis.plot([mean], [height], "D" if height == 0 else "o", color=INK, markersize=6)
    axis.set_yticks(range(len(lines)), [f"{name} ({count})" for name, *_, count in lines])
    axis.set(
        ylim=(len(lines) - 0.5, -0.5),
        xlabel=f"mean Dice, {TITLES[first]}\nminus {TITLES[second]}",
    )
    return _url(figure)


@matplotlib.rc_context(STYLE)
def loss_curves(trainings: list[Training]) -> str:
    """Loss on train (dashed) and validation by epoch: thin each seed, thick their mean."""
    figure, axis = _chart(4.8, 3.4)
    _curves(axis, trainings, "train_loss", "--")
    _curves(axis, trainings, "val_loss", "-")
    axis.set(xlabel="epoch", ylabel="BCE + Dice loss")
    axis.set_ylim(bottom=0)
    axis.legend()
    return _url(figure)


@matplotlib.rc_context(STYLE)
def dice_curves(trainings: list[Training]) -> str:
    """Mean Dice on validation by epoch: thin each seed, thick their mean."""
    figure, axis = _chart(4.8, 3.4)
    _curves(axis, trainings, "val_dice", "-")
    axis.set(xlabel="epoch", ylabel="mean Dice on validation, on the grid", ylim=(0, 1))
    axis.legend(loc="lower right")
    return _url(figure)


def _curves(axis: Axes, trainings: list[Training], column: str, dashes: str) -> None:
    for name in dict.fromkeys(training.run["network"] for training in trainings):
        seeds = [
            training.history.set_index("epoch")[column]
            for training in trainings
            if training.run["network"] == name
        ]
        colour = COLOURS[name]
        # A mean of those seeds that happened to train on would jump where the others stopped.
        mean = pd.concat(seeds, axis=1).dropna().mean(axis=1)
        for seed in seeds if len(seeds) > 1 else []:
            axis.plot(seed.index, seed, dashes, color=colour, linewidth=0.7, alpha=0.6)
        which = ", train" if dashes == "--" else ", validation" if "loss" in column else ""
        marker = "o" if len(mean) == 1 else ""
        axis.plot(
            mean.index,
            mean,
            dashes,
            color=colour,
            linewidth=2,
            marker=marker,
            label=f"{TITLES[name]}{which}",
        )


@matplotlib.rc_context(STYLE)
def reliability(bins: pd.DataFrame) -> str:
    """How often pixels were tumour, against how probable the networks called that.

    Args:
        bins: reports/calibration.csv of one region.
    """
    figure = Figure(figsize=(4.8, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    upper.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    for name, rows in bins[bins["pixels"] > 0].groupby("method", sort=False):
        colour = COLOURS[str(name)]
        upper.plot(
            rows["mean_probability"],
            rows["tumour_fraction"],
            "o-",
            color=colour,
            markersize=4,
            label=TITLES[str(name)],
        )
        middle = (rows["low"] + rows["high"]) / 2
        lower.step(middle, rows["pixels"], where="mid", color=colour)
    upper.set(ylabel="share of pixels that are tumour", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="upper left")
    lower.set(xlabel="probability that the network gave", ylabel="pixels", yscale="log")
    lower.yaxis.set_major_locator(LogLocator(numticks=4))
    lower.yaxis.set_minor_formatter(NullFormatter())
    return _url(figure)


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
        colour = COLOURS.get(name, QUIET)
        axis.hlines(heights, rows["mean_dice_low"], rows["mean_dice_high"], color=colour)
        axis.plot(
            rows["mean_dice"],
            heights,
            "o",
            color=colour,
            markersize=5,
            label=TITLES[name].removeprefix("control: ").split(" of ")[0],
        )
    labels = [f"{_label(*key)} ({n})" for key, n in zip(keys, places["slices"], strict=True)]
    axis.set_yticks(range(len(keys)), labels)
    axis.set(xlim=(0, 1), ylim=(len(keys) - 0.5, -0.5), xlabel="mean Dice, with 95% CI")
    figure.legend(loc="outside upper center", ncols=len(methods))
    return _url(figure)
