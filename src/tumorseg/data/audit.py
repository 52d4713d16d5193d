"""What a reviewer asks about a data set before reading any result: every figure of audit.json."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from tumorseg.core.params import SplitParams
from tumorseg.data import coco
from tumorseg.data.arrays import sizes, true_masks
from tumorseg.data.leakage import Thumbnails, most_similar, neighbour_pairs, neighbours_elsewhere
from tumorseg.data.shapes import RECTANGLE_FILL
from tumorseg.data.splits import EXCLUDED, NO_PATIENTS, count_patients, grouped, patients_known
from tumorseg.evaluation import baselines
from tumorseg.evaluation.metrics import count, score, summarise
from tumorseg.imaging.preprocess import Mask

FILL_EDGES = np.linspace(0, 1, 21)
PERCENTILES = (5, 25, 50, 75, 95)


def audit(
    table: pd.DataFrame,
    pairs: pd.DataFrame,
    thumbnails: Thumbnails,
    findings: list[dict[str, Any]],
    split: SplitParams,
) -> dict[str, Any]:
    """Measures a data set before anything is trained.

    Args:
        table: The manifest with its leaks marked.
        pairs: From `tumorseg.data.leakage.find_pairs`.
        thumbnails: uint8, shape (N, 48, 48).
        findings: From `tumorseg.data.expectations.check`.
        split: How groups would be guessed.

    Returns:
        images, unusable, labels (geometry and pairing), duplicates, patients, leakage, splits
        (balance and sizes), baselines (all background and copy) and findings; plain values, ready
        for JSON.
    """
    usable = table[table["problem"].isna()]
    return {
        "images": len(table),
        "unusable": _counts(table["problem"].value_counts()),
        "labels": _labels(usable),
        "duplicates": _duplicates(usable, pairs),
        "patients": _patients(usable, pairs, thumbnails, split),
        "leakage": _leakage(usable),
        "splits": {split: _balance(usable[usable["split"] == split]) for split in coco.SPLITS},
        "baselines": baseline_figures(usable, thumbnails),
        "outliers": _outliers(usable),
        "findings": findings,
    }


def _counts(counts: pd.Series) -> dict[str, int]:
    return {str(name): int(count) for name, count in counts.items()}


def _share(part: float, whole: float) -> float:
    return round(float(part / whole), 5) if whole else 0.0


def _flagged(usable: pd.DataFrame, name: str) -> int:
    return int(usable["oddities"].str.split(",").map(lambda names: name in names).sum())


def _labels(usable: pd.DataFrame) -> dict[str, Any]:
    fills = usable["box_fill"].dropna()
    rectangles = int((fills >= RECTANGLE_FILL).sum())
    histogram, _ = np.histogram(fills, FILL_EDGES)
    wrong = usable.groupby("split")["wrong_if_zipped"].sum().reindex(coco.SPLITS, fill_value=0)
    return {
        "images_by_annotations": _counts(usable["annotations"].value_counts().sort_index()),
        "rectangles": rectangles,
        "rectangle_share": _share(rectangles, len(fills)),
        "box_fill_histogram": {
            "edges": FILL_EDGES.round(2).tolist(),
            "images": histogram.tolist(),
        },
        "self_intersections": _flagged(usable, "self_intersection"),
        "out_of_frame": _flagged(usable, "out_of_frame"),
        "wrong_if_paired_by_position": _counts(wrong),
    }


def _duplicates(usable: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    split_of = usable.set_index("path")["split"]
    within = pairs["left"].map(split_of) == pairs["right"].map(split_of)
    return {
        f"{kind}_{place}": int(((pairs["kind"] == kind) & chosen).sum())
        for kind in ("exact", "near")
        for place, chosen in (("within_splits", within), ("across_splits", ~within))
    }


def _patients(
    usable: pd.DataFrame, pairs: pd.DataFrame, thumbnails: Thumbnails, split: SplitParams
) -> dict[str, Any]:
    """Of each split the slices and patients, and how well groups of neighbours guess patients."""
    if not patients_known(usable):
        unnamed = int(usable["group"].isna().sum())
        return {"known": False, "unnamed_slices": unnamed, "sentence": NO_PATIENTS}
    nameless = usable.assign(group=pd.array([None] * len(usable), dtype="str"))
    chains = neighbour_pairs(nameless, thumbnails).assign(kind="neighbour")
    links = pd.concat([pairs[pairs["kind"] != "neighbour"], chains], ignore_index=True)
    guess = grouped(nameless, links, split.shortest_block, split.longest_block, split.seed)
    guess = guess.assign(group=usable["group"])
    parts = guess.groupby("group")["split_group"].nunique()
    return {
        "known": True,
        "patients": len(parts),
        "splits": _by_split(usable),
        "guess": {
            "groups": int(guess["split_group"].nunique()),
            "patients_divided": int((parts > 1).sum()),
            "splits": _by_split(guess[guess["split"] != EXCLUDED]),
        },
    }


def _by_split(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Split → slices, patients and, but for train, how many of both have their patient in train."""
    slices = table["split"].value_counts().reindex(coco.SPLITS, fill_value=0)
    counts = {"slices": slices.to_dict()} | count_patients(table)
    return {
        name: {key: int(found[name]) for key, found in counts.items() if name in found}
        for name in coco.SPLITS
    }


def patient_lines(figures: dict[str, Any]) -> list[str]:
    """What the audit says of patients, a line each.

    Args:
        figures: `patients` of `audit`.
    """
    if not figures["known"]:
        return [NO_PATIENTS]
    guess = figures["guess"]
    lines = [f"{figures['patients']} patients, in the splits of the data set:"]
    lines += _split_lines(figures["splits"])
    lines.append(
        f"Guessed from neighbouring slices, {guess['groups']} groups divide "
        f"{guess['patients_divided']} of {figures['patients']} patients; split by them:"
    )
    return lines + _split_lines(guess["splits"])


def _split_lines(splits: dict[str, dict[str, int]]) -> list[str]:
    lines = []
    for name, found in splits.items():
        line = f"  {name}: {found['slices']} slices of {found['patients']} patients"
        if name != "train":
            line += (
                f"; in train are the patients of {found['slices_with_patient_in_train']} slices "
                f"({found['patients_in_train']} patients)"
            )
        lines.append(line)
    return lines


def _leakage(usable: pd.DataFrame) -> dict[str, Any]:
    in_train = neighbours_elsewhere(usable, ("train",))
    return {
        str(split): {
            "slices": len(rows),
            "with_neighbour_elsewhere": int(rows["neighbour_elsewhere"].sum()),
            "with_near_duplicate_elsewhere": int(rows["near_duplicate_elsewhere"].sum()),
            "with_duplicate_elsewhere": int(rows["duplicate_elsewhere"].sum()),
            "with_neighbour_in_train": int(in_train[(usable["split"] == split).to_numpy()].sum()),
        }
        for split, rows in usable.groupby("split", sort=False)
    }


def _balance(rows: pd.DataFrame) -> dict[str, Any]:
    tumour = rows.loc[rows["tumour_fraction"] > 0, "tumour_fraction"]
    sizes = np.percentile(tumour, PERCENTILES) if len(tumour) else [0.0] * len(PERCENTILES)
    pixels = rows["width"].astype(float) * rows["height"].astype(float)
    background = 1 - _share((rows["tumour_fraction"] * pixels).sum(), pixels.sum())
    return {
        "images": len(rows),
        "without_tumour": int((rows["tumour_fraction"] == 0).sum()),
        "categories": _counts(rows["categories"].value_counts()),
        "tumour_fraction_percentiles": {
            str(p): round(float(size), 5) for p, size in zip(PERCENTILES, sizes, strict=True)
        },
        "all_background_accuracy": round(background, 5),
    }


def copied_masks(thumbnails: Thumbnails, train: pd.DataFrame, rows: pd.DataFrame) -> Iterator[Mask]:
    """For each slice the mask of the most similar train slice: the `copy` baseline.

    Args:
        thumbnails: Of all slices, uint8, shape (N, 48, 48); the manifest's column is its index.
        train: The manifest rows whose masks may be copied.
        rows: Those of the slices to be segmented.
    """
    small, wanted = (thumbnails[part["thumbnail"].to_numpy(np.intp)] for part in (train, rows))
    return baselines.copy(true_masks(train.iloc[most_similar(small, wanted)]), sizes(rows))


def baseline_figures(usable: pd.DataFrame, thumbnails: Thumbnails) -> dict[str, Any]:
    """The scores on the test split of the two baselines that need no training."""
    train, test = (usable[usable["split"] == split] for split in ("train", "test"))
    if train.empty or test.empty:
        return {}
    answers = {
        "background": baselines.background(sizes(test)),
        "copy": copied_masks(thumbnails, train, test),
    }
    keys = ("micro_dice", "mean_dice", "mean_dice_low", "mean_dice_high", "accuracy")
    figures = {}
    for name, masks in answers.items():
        counts = pd.DataFrame(map(count, masks, true_masks(test)))
        summary = summarise(score(counts), samples=2000, seed=0)
        figures[name] = {key: summary[key] for key in keys}
    return figures


def _outliers(usable: pd.DataFrame) -> dict[str, Any]:
    sizes = usable["width"].astype(str) + "×" + usable["height"].astype(str)
    return {
        "sizes": _counts(sizes.value_counts().head(10)),
        "size": _flagged(usable, "size_outlier"),
        "intensity": _flagged(usable, "intensity_outlier"),
        "blank": _flagged(usable, "blank"),
        "mean_grey_percentiles": {
            str(p): round(float(np.percentile(usable["mean"], p)), 1) for p in PERCENTILES
        }
        if len(usable)
        else {},
    }
