"""Whether a challenger may replace the champion: both evaluated as served, slice by slice."""

from pathlib import Path
from typing import Any

import pandas as pd

from tumorseg.core.params import PromoteParams
from tumorseg.data.arrays import read_slice, true_masks
from tumorseg.evaluation.metrics import count, counted, score
from tumorseg.evaluation.paired import FEWEST_GROUPS, difference
from tumorseg.evaluation.strata import by_size
from tumorseg.inference.predictor import Predictor

CHALLENGER, CHAMPION = "challenger", "champion"


def served_scores(model: Path, rows: pd.DataFrame, data: Path) -> pd.DataFrame:
    """Counts and Dice of a model folder, from image files through the service's own code.

    The champion is evaluated again each time: it may have been trained on another grid or other
    data, so that its registered figures would not compare.

    Args:
        model: Holds model.onnx and model.json.
        rows: Manifest rows to evaluate on.
        data: The folder to which their paths are relative.

    Returns:
        One row per slice: path, group, tp, fp, fn, tn, dice, iou.
    """
    predictor = Predictor(model)
    counts = [
        count(predictor.segment(read_slice(data / path)).mask, truth)
        for path, truth in zip(rows["path"], true_masks(rows), strict=True)
    ]
    named = pd.DataFrame({"path": rows["path"].to_list(), "group": rows["split_group"].to_list()})
    return score(pd.concat([named, pd.DataFrame(counts)], axis=1))


def figures(
    challenger: pd.DataFrame, champion: pd.DataFrame | None, params: PromoteParams
) -> dict[str, Any]:
    """Compares both on the same slices, as plain values.

    Args:
        challenger: From `served_scores`.
        champion: From `served_scores` on the same slices; None without a champion.
        params: The promote section.

    Returns:
        challenger_mean_dice; champion_mean_dice and difference (mean, low, high, p_value, slices,
        groups), None without a champion; strata, one row per size: stratum, slices, challenger,
        champion, difference, counts (whether it has enough slices to count); margins.
    """
    both, gap = [challenger.assign(method=CHALLENGER)], None
    if champion is not None:
        both.append(champion.assign(method=CHAMPION))
    scored = pd.concat(both, ignore_index=True)
    if champion is not None:
        found = difference(scored, CHALLENGER, CHAMPION, params.bootstrap_samples, params.seed)
        names = ("mean", "low", "high", "p_value", "slices", "groups")
        gap = {name: getattr(found, name) for name in names}
    strata = []
    for name, part in by_size(scored).items():
        means = part.groupby("method")["dice"].mean().to_dict()
        slices = int(part["path"].nunique())
        row = {"stratum": name, "slices": slices, "counts": slices >= params.min_stratum_slices}
        row |= {CHALLENGER: means[CHALLENGER], CHAMPION: means.get(CHAMPION), "difference": None}
        if champion is not None:
            row["difference"] = means[CHALLENGER] - means[CHAMPION]
        strata.append(row)
    return {
        "challenger_mean_dice": float(challenger["dice"].mean()),
        "champion_mean_dice": None if champion is None else float(champion["dice"].mean()),
        "difference": gap,
        "strata": strata,
        "margins": params.model_dump(
            include={"min_gain", "max_loss", "max_stratum_loss", "min_stratum_slices"}
        ),
    }


def objections(found: dict[str, Any]) -> list[str]:
    """The margins that the challenger violates, one clause each; empty if it may be promoted.

    Args:
        found: From `figures`, with a champion.
    """
    margins, gap, against = found["margins"], found["difference"], []
    if not gap["mean"] > margins["min_gain"]:
        against.append(
            f"the mean gain {gap['mean']:+.4f} does not exceed promote.min_gain "
            f"{margins['min_gain']:g}"
        )
    if not gap["low"] >= -margins["max_loss"]:
        against.append(
            f"the 95% interval of the gain begins at {gap['low']:+.4f}, below minus "
            f"promote.max_loss {margins['max_loss']:g}"
        )
    for row in found["strata"]:
        if row["counts"] and not row["difference"] >= -margins["max_stratum_loss"]:
            against.append(
                f"on the {row['slices']} slices of {row['stratum']} it loses "
                f"{-row['difference']:.4f}, more than promote.max_stratum_loss "
                f"{margins['max_stratum_loss']:g}"
            )
    return against


def caveats(
    found: dict[str, Any],
    challenger: dict[str, Any],
    champion: dict[str, Any] | None,
    test_set: dict[str, Any],
) -> list[str]:
    """What limits the figures, one sentence each.

    Args:
        found: From `figures`.
        challenger: Its model.json.
        champion: That of the champion, if there is one.
        test_set: The test set now, from `data.splits.fingerprint`.
    """
    sentences = []
    for title, info in ((CHALLENGER, challenger), (CHAMPION, champion)):
        known = (info or {}).get("test_set") or {}
        if info is None or known.get("labels") == test_set["labels"]:
            continue
        about = f"the {title}, version {info['version']}, was registered with "
        if known.get("images") == test_set["images"]:
            sentences.append(f"{about}other labels of the same test slices")
        else:
            sentences.append(
                f"{about}another test set: it may have been trained on some of these slices, "
                "which would flatter it"
            )
    if test_set["groups"] < FEWEST_GROUPS:
        size = counted(test_set["slices"], test_set["groups"], test_set["patients_known"])
        sentences.append(f"the test split has only {size}: the interval says little")
    if champion is not None and not any(row["counts"] for row in found["strata"]):
        sentences.append(
            "no size stratum has promote.min_stratum_slices "
            f"{found['margins']['min_stratum_slices']} slices, so none counted"
        )
    return sentences
