"""The slices that the report shows: the worst ones, and what the attention gates let through."""

import base64
from typing import Any

import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from tumorseg.data import coco
from tumorseg.data.arrays import read_slice
from tumorseg.evaluation.results import TITLES
from tumorseg.imaging.preprocess import Mask, mask_to_grid, to_grid
from tumorseg.reporting.attention import attention_maps
from tumorseg.reporting.figures import COLOURS, TRUTH
from tumorseg.reporting.inputs import ReportInputs, networks_of, over_seeds

WIDTH = 288  # pixels of a picture; it is shown smaller, for screens with fine pixels
WORST = 8
GOOD, BAD = 2, 2  # slices whose attention is shown
PALETTE = "viridis"
OPAQUE = 0.6  # of an attention map over its image


def worst_cases(inputs: ReportInputs) -> list[dict[str, Any]]:
    """The test slices with the lowest Dice averaged over networks and seeds, lowest first.

    Where several are equally low, those with the larger tumour come first.

    Returns:
        A slice: name, facts, Dice a network, and pictures with captions.
    """
    scored, networks = over_seeds(inputs.test), networks_of(inputs)
    dice = scored[scored["method"].isin(networks)].pivot(
        index="path", columns="method", values="dice"
    )
    facts = inputs.test_facts().loc[dice.index]
    ranked = facts.assign(dice=dice.mean(axis=1)).sort_values(
        ["dice", "tumour_fraction"], ascending=[True, False], kind="stable"
    )
    cases = []
    for path in map(str, ranked.head(WORST).index):
        grey = read_slice(inputs.data / path)
        truth, masks = _masks(inputs, path, grey.shape)
        pictures = [("image", _picture(grey, {})), ("true label", _picture(grey, {TRUTH: truth}))]
        for name, mask in masks.items():
            what = f"{TITLES[name]}, Dice {dice[name][path]:.2f}"
            if not mask.any():
                what += "; finds nothing"
            pictures.append((what, _picture(grey, {TRUTH: truth, COLOURS[name]: mask})))
        facts_of_it: dict[str, Any] = {str(k): v for k, v in ranked.loc[path].items()}
        cases.append({"name": path, "pictures": pictures} | facts_of_it)
    return cases


def attention_cases(inputs: ReportInputs) -> list[dict[str, Any]]:
    """What each gate of the Attention U-Net lets through on slices that it does well and badly.

    Returns:
        A slice: name, Dice, whether it is a good one, and pictures with captions, coarse to fine.
    """
    rows = inputs.test[inputs.test["method"] == "attention_unet"]
    rows = rows[(rows["seed"] == inputs.gated_seed) & (rows["tp"] + rows["fn"] > 0)]
    chosen = _extremes(rows.sort_values(["dice", "path"], ascending=[False, True]))
    if chosen.empty:
        return []
    size = int(inputs.params["augment"]["image_size"])
    images = [read_slice(inputs.data / path) for path in chosen["path"]]
    maps = attention_maps(inputs.gated, np.stack([to_grid(image, size) for image in images]))
    cases = []
    for index, (row, grey) in enumerate(zip(chosen.itertuples(), images, strict=True)):
        masks = {
            TRUTH: coco.decode(str(row.truth_rle), *grey.shape),
            COLOURS["attention_unet"]: coco.decode(str(row.mask_rle), *grey.shape),
        }
        pictures = [("true label and prediction", _picture(grey, masks))]
        for number, gate in enumerate(maps, start=1):
            alpha = gate[index]
            what = f"gate {number}, {alpha.shape[0]}×{alpha.shape[1]}: α {alpha.min():.2f}–"
            pictures.append(
                (f"{what}{alpha.max():.2f}, mean {alpha.mean():.2f}", _overlaid(grey, alpha))
            )
        cases.append({"name": row.path, "dice": row.dice, "good": row.good, "pictures": pictures})
    return cases


def colour_bar() -> str:
    """The colours of α from 0 to 1, as stops of a CSS gradient."""
    colours = matplotlib.colormaps[PALETTE](np.linspace(0, 1, 9))
    return ", ".join(matplotlib.colors.to_hex(colour) for colour in colours)


def _extremes(ranked: pd.DataFrame) -> pd.DataFrame:
    """The first and last rows, of different groups where there are enough."""
    count = GOOD + BAD
    best, worst = ranked.drop_duplicates("group"), ranked.drop_duplicates("group", keep="last")
    if len(best) < count:
        best = worst = ranked
    bad = worst.tail(min(BAD, len(worst) // 2))
    good = best[~best["path"].isin(bad["path"])].head(GOOD)
    return pd.concat([good.assign(good=True), bad.assign(good=False)])


def _masks(inputs: ReportInputs, path: str, shape: tuple[int, ...]) -> tuple[Mask, dict[str, Mask]]:
    """The true mask of a test slice, and each network's with the seed that is shown."""
    rows = inputs.test[inputs.test["path"] == path]
    masks = {
        name: coco.decode(
            rows[(rows["method"] == name) & (rows["seed"] == inputs.shown_seed(name))][
                "mask_rle"
            ].iloc[0],
            shape[0],
            shape[1],
        )
        for name in networks_of(inputs)
    }
    return coco.decode(rows["truth_rle"].iloc[0], shape[0], shape[1]), masks


def _picture(grey: NDArray[np.uint8], outlined: dict[str, Mask]) -> str:
    """A slice with masks outlined in their colours, as a data URL."""
    drawn: NDArray[np.uint8] = cv2.cvtColor(to_grid(grey, WIDTH), cv2.COLOR_GRAY2BGR)
    for colour, mask in outlined.items():
        borders, _ = cv2.findContours(
            mask_to_grid(mask, WIDTH), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        # Twice as bright as on paper, since it lies on dark tissue.
        blue_green_red = [255 * (0.35 + 0.65 * part) for part in to_rgb(colour)[::-1]]
        cv2.drawContours(drawn, borders, -1, blue_green_red, 2, cv2.LINE_AA)
    return _url(drawn)


def _overlaid(grey: NDArray[np.uint8], alpha: NDArray[np.float32]) -> str:
    """A slice under an attention map, whose cells stay visible, as a data URL."""
    under = cv2.cvtColor(to_grid(grey, WIDTH), cv2.COLOR_GRAY2BGR).astype(np.float32)
    large = cv2.resize(alpha, (WIDTH, WIDTH), interpolation=cv2.INTER_NEAREST)
    over = 255 * matplotlib.colormaps[PALETTE](large)[..., 2::-1]
    return _url((OPAQUE * over + (1 - OPAQUE) * under).astype(np.uint8))


def _url(picture: NDArray[np.uint8]) -> str:
    sharp = [cv2.IMWRITE_JPEG_QUALITY, 82, cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
             cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # fmt: skip
    _, encoded = cv2.imencode(".jpg", picture, sharp)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
