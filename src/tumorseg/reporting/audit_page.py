"""The audit as one HTML file that needs nothing else: the figures with pictures beside them."""

import base64
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from jinja2 import Environment
from numpy.typing import NDArray

from tumorseg.core.files import atomic_path
from tumorseg.data import coco
from tumorseg.data.arrays import read_slice
from tumorseg.data.leakage import Thumbnails, correlation, most_similar
from tumorseg.evaluation.metrics import count, score
from tumorseg.imaging.preprocess import to_grid

WIDTH = 180  # pixels of a picture
GREEN = (120, 230, 90)  # blue, green, red; bright enough on grey
SHOWN = 6


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
    template = (
        resources.files("tumorseg.reporting").joinpath("audit.html").read_text(encoding="utf-8")
    )
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = page.render(
        figures,
        labels_shown=[_single(row, data) for row in _spread(usable).itertuples()],
        recognised=_recognised(usable, thumbnails, data),
        duplicates_shown=_pairs(usable, pairs, data),
        outliers_shown=[
            _single(row, data)
            for row in usable[
                usable["oddities"].str.contains("outlier|blank|self_inter|out_of_frame")
            ]
            .head(SHOWN)
            .itertuples()
        ],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _spread(usable: pd.DataFrame) -> pd.DataFrame:
    """Slices with tumour, from the least to the most box-like."""
    labelled = usable[usable["tumour_fraction"] > 0].sort_values(["box_fill", "path"])
    shown = min(SHOWN, len(labelled))
    return labelled.iloc[np.unique(np.linspace(0, len(labelled) - 1, shown).astype(int))]


def _single(row: Any, data: Path) -> dict[str, str]:
    what = f"{row.tumour_fraction:.1%} tumour, fills {row.box_fill:.0%} of its box"
    if row.oddities:
        what = row.oddities.replace("_", " ")
    return {"picture": _picture(data / row.path, row), "name": row.path, "what": what}


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
        _beside(test.iloc[i], train.iloc[best[i]], float(alike[i]), data)
        for i in dict.fromkeys(shown)
    ]


def _pairs(usable: pd.DataFrame, pairs: pd.DataFrame, data: Path) -> list[dict[str, Any]]:
    """Equal and nearly equal pictures, those of different splits first, most alike first."""
    rows = usable.set_index("path", drop=False)
    chosen = pairs[pairs["kind"] != "neighbour"]
    apart = chosen["left"].map(rows["split"]) != chosen["right"].map(rows["split"])
    chosen = chosen.assign(apart=apart).sort_values(["apart", "correlation"], ascending=False)
    shown = chosen.head(SHOWN)[["left", "right", "correlation"]]
    return [
        _beside(rows.loc[str(left)], rows.loc[str(right)], float(alike), data)
        for left, right, alike in shown.to_numpy().tolist()
    ]


def _beside(one: Any, two: Any, alike: float, data: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "pictures": [
            {"picture": _picture(data / row["path"], row), "name": row["path"]}
            for row in (one, two)
        ],
        "what": f"correlation {alike:.3f}",
    }
    if (one["height"], one["width"]) == (two["height"], two["width"]):
        masks = [coco.decode(r["mask_rle"], int(r["height"]), int(r["width"])) for r in (one, two)]
        dice = score(pd.DataFrame([count(masks[1], masks[0])]))["dice"].iloc[0]
        answer["what"] += f"; Dice of the two labels {dice:.2f}"
    return answer


def _picture(path: Path, row: Any) -> str:
    """A small picture with its label outlined, as a data URL."""
    grey = read_slice(path)
    mask_rle = row["mask_rle"] if isinstance(row, pd.Series) else row.mask_rle
    mask = coco.decode(mask_rle, *grey.shape)
    small: NDArray[np.uint8] = cv2.cvtColor(to_grid(grey, WIDTH), cv2.COLOR_GRAY2BGR)
    label = (to_grid(mask.astype(np.float32), WIDTH) >= 0.5).astype(np.uint8)
    borders, _ = cv2.findContours(label, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(small, borders, -1, GREEN, 1)
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
