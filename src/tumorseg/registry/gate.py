"""Whether a challenger may replace the champion: both judged as served, slice by slice."""

from pathlib import Path
from typing import Any

import pandas as pd

from tumorseg.core.params import PromoteParams
from tumorseg.data.arrays import read_slice, true_masks
from tumorseg.evaluation.metrics import count, score
from tumorseg.evaluation.paired import FEWEST_GROUPS, Difference, difference
from tumorseg.evaluation.strata import by_size
from tumorseg.inference.predictor import Predictor

CHALLENGER, CHAMPION = "challenger", "champion"


def served_scores(model: Path, rows: pd.DataFrame, data: Path) -> pd.DataFrame:
    """Counts and Dice of a model folder, from image files through the service's own path.

    A champion may have been trained on another grid or other data; its figures of that day would
    not compare.

    Args:
        model: Holds model.onnx and model.json.
        rows: Manifest rows to judge on.
        data: The folder to which their paths are relative.

    Returns:
        A row a slice: path, group, tp, fp, fn, tn, dice, iou.
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
    """What the gate looks at, as plain values.

    Args:
        challenger: From `served_scores`.
        champion: The same slices judged by the champion, if there is one.
        params: The promote section.

    Returns:
        challenger_mean_dice; champion_mean_dice and difference (mean, low, high, p_value, slices,
        groups), None without a champion; strata, a row a size: stratum, slices, challenger,
        champion, difference, counts (whether it holds slices enough to have a say); margins.
    """
    both = [challenger.assign(method=CHALLENGER)]
    if champion is not None:
        both.append(champion.assign(method=CHAMPION))
    scored = pd.concat(both, ignore_index=True)
    found = None
    if champion is not None:
        found = difference(scored, CHALLENGER, CHAMPION, params.bootstrap_samples, params.seed)
    return {
        "challenger_mean_dice": float(challenger["dice"].mean()),
        "champion_mean_dice": None if champion is None else float(champion["dice"].mean()),
        "difference": None if found is None else _plain(found),
        "strata": [_stratum(name, part, params) for name, part in by_size(scored).items()],
        "margins": params.model_dump(
            include={"min_gain", "max_loss", "max_stratum_loss", "min_stratum_slices"}
        ),
    }


def _plain(found: Difference) -> dict[str, Any]:
    names = ("mean", "low", "high", "p_value", "slices", "groups")
    return {name: getattr(found, name) for name in names}


def _stratum(name: str, part: pd.DataFrame, params: PromoteParams) -> dict[str, Any]:
    means = part.groupby("method")["dice"].mean()
    slices = int(part["path"].nunique())
    ours, theirs = float(means[CHALLENGER]), means.get(CHAMPION)
    return {
        "stratum": name,
        "slices": slices,
        "challenger": ours,
        "champion": None if theirs is None else float(theirs),
        "difference": None if theirs is None else ours - float(theirs),
        "counts": slices >= params.min_stratum_slices,
    }


def objections(found: dict[str, Any]) -> list[str]:
    """What speaks against the challenger, in words; nothing, if it may replace the champion.

    Args:
        found: From `figures`, with a champion.
    """
    margins, gap = found["margins"], found["difference"]
    said = []
    if not gap["mean"] > margins["min_gain"]:
        said.append(
            f"the mean gain {gap['mean']:+.4f} does not exceed promote.min_gain "
            f"{margins['min_gain']:g}"
        )
    if not gap["low"] >= -margins["max_loss"]:
        said.append(
            f"the 95% interval of the gain begins at {gap['low']:+.4f}, so that a loss of more "
            f"than promote.max_loss {margins['max_loss']:g} is not ruled out"
        )
    for row in found["strata"]:
        if row["counts"] and not row["difference"] >= -margins["max_stratum_loss"]:
            said.append(
                f"on the {row['slices']} slices of {row['stratum']} it loses "
                f"{-row['difference']:.4f}, more than promote.max_stratum_loss "
                f"{margins['max_stratum_loss']:g}"
            )
    return said


def caveats(
    found: dict[str, Any],
    challenger: dict[str, Any],
    champion: dict[str, Any] | None,
    present: dict[str, Any],
) -> list[str]:
    """What a reader must know before the figures are believed, a sentence each.

    Args:
        found: From `figures`.
        challenger: Its model.json.
        champion: That of the champion, if there is one.
        present: Of the data now: `split` as in reports/split.json, `data_md5`, `test_set`.
    """
    said = []
    for title, info in ((CHALLENGER, challenger), (CHAMPION, champion)):
        if info is not None:
            said += _strangeness(f"the {title}, version {info['version']},", info, present)
    if present["test_set"]["groups"] < FEWEST_GROUPS:
        said.append(
            f"the test slices form only {present['test_set']['groups']} groups: the interval "
            "says little"
        )
    if champion is not None and not any(row["counts"] for row in found["strata"]):
        said.append(
            "no size stratum holds promote.min_stratum_slices "
            f"{found['margins']['min_stratum_slices']} slices, so none had a say"
        )
    return said


def _strangeness(who: str, info: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """In what a model's own data and sides differ from those that it is judged on."""
    known, now = info.get("test_set"), present["test_set"]
    if known is not None and known["images"] == now["images"]:
        # Its own split kept these very slices from its training, whatever else has come since.
        if known["labels"] == now["labels"]:
            return []
        return [
            f"{who} was registered with other labels of the same test slices; it is judged by the "
            "present ones"
        ]
    split = (info.get("split") or {}).get("digest")
    if known is None and (split, info["data_md5"]) == (
        present["split"]["digest"],
        present["data_md5"],
    ):
        return []
    kept = "is not known" if known is None else f"had {known['slices']} slices"
    return [
        f"{who} was registered with another split or other data (its test set {kept}): it may "
        "have been trained on some of the slices that it is judged on here, which would flatter it"
    ]
