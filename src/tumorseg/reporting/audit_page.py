"""The audit as one HTML file that needs nothing else: the figures with pictures beside them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tumorseg.core.files import atomic_path
from tumorseg.data import coco
from tumorseg.data.arrays import read_slice
from tumorseg.data.leakage import Thumbnails, correlation, most_similar
from tumorseg.reporting.pictures import TRUTH, outlined
from tumorseg.reporting.wording import fill

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
    labelled = usable[usable["tumour_fraction"] > 0].sort_values(["box_fill", "path"])
    spread = labelled.iloc[_spread(len(labelled))]
    unusual = usable[usable["oddities"].str.contains(UNUSUAL)]
    shown = {
        "labels_shown": [_single(row, data) for row in spread.to_dict("records")],
        "recognised": _recognised(usable, thumbnails, data),
        "duplicates_shown": _duplicates(usable, pairs, data),
        "outliers_shown": [_single(row, data) for row in unusual.head(SHOWN).to_dict("records")],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(fill("audit.html", figures | shown), encoding="utf-8")


def _spread(count: int) -> NDArray[np.intp]:
    """`SHOWN` of so many positions at equal distances, the first and the last among them."""
    return np.linspace(0, count - 1, min(SHOWN, count)).astype(np.intp)


def _recognised(usable: pd.DataFrame, thumbnails: Thumbnails, data: Path) -> list[dict[str, Any]]:
    """Test slices beside the train slice that most resembles them, most alike first."""
    train, test = (usable[usable["split"] == split] for split in ("train", "test"))
    if train.empty or test.empty:
        return []
    own, others = (rows["thumbnail"].to_numpy(np.intp) for rows in (test, train))
    best = most_similar(thumbnails[others], thumbnails[own])
    alike = correlation(thumbnails, np.column_stack([own, others[best]]))
    shown = np.argsort(-alike)[_spread(len(alike))]
    return [_beside([test.iloc[i], train.iloc[best[i]]], alike[i], data) for i in shown]


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
    pictures = [{"picture": _picture(row, data), "name": row["path"]} for row in rows]
    return {"pictures": pictures, "what": f"correlation {alike:.3f}"}


def _picture(row: Any, data: Path) -> str:
    grey = read_slice(data / row["path"])
    return outlined(grey, {TRUTH: coco.decode(row["mask_rle"], *grey.shape)})
