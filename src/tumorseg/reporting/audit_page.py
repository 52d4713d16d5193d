"""The audit as one HTML file that needs nothing else: the figures with pictures beside them."""

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tumorseg.core.files import atomic_path
from tumorseg.data import coco
from tumorseg.data.arrays import read_slice
from tumorseg.data.leakage import Thumbnails, correlation, most_similar
from tumorseg.evaluation.metrics import count, score
from tumorseg.imaging.preprocess import mask_to_grid, to_grid
from tumorseg.reporting.wording import fill

WIDTH = 180  # pixels of a picture
GREEN = (120, 230, 90)  # blue, green, red; bright enough on grey
SHOWN = 6
UNUSUAL = "outlier|blank|self_inter|out_of_frame"


def write_page(
    figures: dict[str, Any],
    table: pd.DataFrame,
    pairs: pd.DataFrame,
    thumbnails: Thumbnails,
    data: Path,
    path: Path,
) -> None:
    """Writes the page.

    Args:
        figures: From `tumorseg.data.audit.audit`.
        table: The manifest with its leaks marked.
        pairs: From `tumorseg.data.leakage.find_pairs`.
        thumbnails: uint8, shape (N, 48, 48).
        data: The folder to which the manifest's paths are relative.
        path: The HTML file.
    """
    usable = table[table["problem"].isna()]
    unusual = usable[usable["oddities"].str.contains(UNUSUAL)].head(SHOWN)
    shown = {
        "labels_shown": [_single(row, data) for row in _spread(usable).to_dict("records")],
        "recognised": _recognised(usable, thumbnails, data),
        "duplicates_shown": _duplicates(usable, pairs, data),
        "outliers_shown": [_single(row, data) for row in unusual.to_dict("records")],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(fill("audit.html", figures | shown), encoding="utf-8")


def _spread(usable: pd.DataFrame) -> pd.DataFrame:
    """Slices with tumour, from the least to the most box-like."""
    labelled = usable[usable["tumour_fraction"] > 0].sort_values(["box_fill", "path"])
    shown = min(SHOWN, len(labelled))
    return labelled.iloc[np.unique(np.linspace(0, len(labelled) - 1, shown).astype(int))]


def _recognised(usable: pd.DataFrame, thumbnails: Thumbnails, data: Path) -> list[dict[str, Any]]:
    """Test slices beside the train slice that most resembles them, most alike first."""
    train, test = (usable[usable["split"] == split] for split in ("train", "test"))
    if train.empty or test.empty:
        return []
    own, others = (rows["thumbnail"].to_numpy(np.intp) for rows in (test, train))
    best = most_similar(thumbnails[others], thumbnails[own])
    alike = correlation(thumbnails, np.column_stack([own, others[best]]))
    ranking = np.argsort(-alike)
    shown = ranking[np.linspace(0, len(ranking) - 1, SHOWN).astype(int)]
    return [
        _beside([test.iloc[i], train.iloc[best[i]]], float(alike[i]), data)
        for i in dict.fromkeys(shown)
    ]


def _duplicates(usable: pd.DataFrame, pairs: pd.DataFrame, data: Path) -> list[dict[str, Any]]:
    """Equal and nearly equal pictures, those of different splits first, most alike first."""
    rows = usable.set_index("path", drop=False)
    chosen = pairs[pairs["kind"] != "neighbour"]
    apart = chosen["left"].map(rows["split"]) != chosen["right"].map(rows["split"])
    chosen = chosen.assign(apart=apart).sort_values(["apart", "correlation"], ascending=False)
    return [
        _beside([rows.loc[pair["left"]], rows.loc[pair["right"]]], pair["correlation"], data)
        for pair in chosen.head(SHOWN).to_dict("records")
    ]


def _single(row: Any, data: Path) -> dict[str, str]:
    what = f"{row['tumour_fraction']:.1%} tumour, fills {row['box_fill']:.0%} of its box"
    what = row["oddities"].replace("_", " ") or what
    return {"picture": _picture(row, data), "name": row["path"], "what": what}


def _beside(rows: list[Any], alike: float, data: Path) -> dict[str, Any]:
    what = f"correlation {alike:.3f}"
    if len({(row["height"], row["width"]) for row in rows}) == 1:
        one, two = (
            coco.decode(row["mask_rle"], int(row["height"]), int(row["width"])) for row in rows
        )
        dice = score(pd.DataFrame([count(two, one)]))["dice"].iloc[0]
        what += f"; Dice of the two labels {dice:.2f}"
    pictures = [{"picture": _picture(row, data), "name": row["path"]} for row in rows]
    return {"pictures": pictures, "what": what}


def _picture(row: Any, data: Path) -> str:
    """A small picture with its label outlined, as a data URL."""
    grey = read_slice(data / row["path"])
    label = mask_to_grid(coco.decode(row["mask_rle"], *grey.shape), WIDTH)
    small: NDArray[np.uint8] = cv2.cvtColor(to_grid(grey, WIDTH), cv2.COLOR_GRAY2BGR)
    borders, _ = cv2.findContours(label, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(small, borders, -1, GREEN, 1)
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
