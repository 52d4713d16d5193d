"""Results of the comparison: figures, verdicts, split optimism, and the table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tumorseg.core.params import NETWORKS, EvaluateParams
from tumorseg.evaluation.calibration import Reliability
from tumorseg.evaluation.metrics import counted, detection, group_name, summarise
from tumorseg.evaluation.paired import Difference, comparisons, verdict

ENSEMBLE = "ensemble"  # a reference: it neither wins nor is registered
TITLES = {
    "unet": "U-Net",
    "attention_unet": "Attention U-Net",
    ENSEMBLE: "mean of all networks",
    "copy": "baseline: copy of the most similar train slice",
    "intensity": "baseline: best intensity band",
    "background": "baseline: all background",
}

Run = tuple[str, int | None]  # network and seed; none for the mean of all networks


@dataclass(frozen=True)
class Comparison:
    """The scores of all methods, from which `reduce` takes every figure.

    Attributes:
        scored: A row a method, seed and slice: method, seed (of networks), split, path, group,
            category, tp, fp, fn, tn, dice, iou, lesions, lesions_found, calls, calls_right,
            hd95 and surface_dice (on test), mask_rle, truth_rle. In pixels of the image's own
            size, distances in `unit`.
        thresholds: The probability from which each run calls a pixel tumour.
        reliability: Network or ensemble → how its probabilities on test compare with the truth.
        unit: `mm` where every test image has a spacing, else `pixels`.
    """

    scored: pd.DataFrame
    thresholds: dict[Run, float]
    reliability: dict[str, Reliability]
    unit: str


def reduce(comparison: Comparison, split: dict[str, Any], params: EvaluateParams) -> dict[str, Any]:
    """The figures of reports/metrics.json.

    The winner has the highest mean Dice on the validation split over its seeds, of which the best
    there is registered.

    Args:
        comparison: Of all methods on validation and test.
        split: reports/split.json, which describes the splits.
        params: The evaluate section.

    Returns:
        split: its method and digest, and whether patients are known; valid and test: method →
        figure; runs: network-seed → split → figure; thresholds; distances: their unit and
        tolerance; paired: the networks with each other, with the copy baseline and with the
        strongest one; winner and winner_seed.
    """
    scored = comparison.scored
    described = {key: split[key] for key in ("method", "digest")}
    described["patients_known"] = split["patients_known"]
    figures: dict[str, Any] = {"split": described} | {
        str(name): {str(m): _figures(t, params) for m, t in part.groupby("method", sort=False)}
        for name, part in scored.groupby("split", sort=False)
    }
    for name, found in comparison.reliability.items():
        errors = {"ece": found.ece("all"), "ece_near": found.ece("near")}
        figures["test"][name] |= _defined(errors)
    trained = scored[scored["method"].isin(NETWORKS)]
    figures["runs"] = {
        f"{method}-{seed}": {str(s): _figures(t, params) for s, t in part.groupby("split")}
        for (method, seed), part in trained.groupby(["method", "seed"], sort=False)
    }
    figures["thresholds"] = {
        name if seed is None else f"{name}-{seed}": threshold
        for (name, seed), threshold in comparison.thresholds.items()
    }
    figures["distances"] = {"unit": comparison.unit, "tolerance": params.surface_tolerance}
    test = scored[scored["split"] == "test"]
    baselines = [name for name in figures["test"] if name not in (*NETWORKS, ENSEMBLE)]
    strongest = max(baselines, key=lambda name: figures["test"][name]["mean_dice"])
    beaten = dict.fromkeys(("copy", strongest))
    pairs = [("attention_unet", "unet"), *((name, other) for name in NETWORKS for other in beaten)]
    figures["paired"] = comparisons(test, pairs, params.bootstrap_samples, params.seed)
    winner = max(NETWORKS, key=lambda name: figures["valid"][name]["mean_dice"])
    seeds = [seed for name, seed in comparison.thresholds if name == winner]
    best = max(seeds, key=lambda s: figures["runs"][f"{winner}-{s}"]["valid"]["mean_dice"])
    return figures | {"winner": winner, "winner_seed": best}


def crossvalidated(
    scored: pd.DataFrame, patients_known: bool, params: EvaluateParams
) -> dict[str, Any]:
    """The figures of a cross-validation, in which each slice was judged once.

    Args:
        scored: Of all folds, from `tumorseg.training.crossvalidation.score_fold`.
        patients_known: Whether the groups are patients, all of them given.
        params: The evaluate section.

    Returns:
        split: whether patients are known; test: method → figure, over the slices of all folds;
        folds: fold → method → mean Dice; paired: the networks with each other and with the copy
        baseline.
    """
    each = scored.groupby(["fold", "method"], sort=False)["dice"].mean().round(5).unstack()
    methods = [str(method) for method in scored["method"].unique()]
    networks = [name for name in methods if name in NETWORKS]
    pairs = [(other, networks[0]) for other in networks[1:]] + [(n, "copy") for n in networks]
    return {
        "split": {"patients_known": patients_known},
        "test": {
            name: _defined(summarise(part, params.bootstrap_samples, params.seed) | detection(part))
            for name, part in scored.groupby("method", sort=False)
        },
        "folds": {str(fold): row.to_dict() for fold, row in each[methods].iterrows()},
        "paired": comparisons(scored, pairs, params.bootstrap_samples, params.seed),
    }


def fold_table(figures: dict[str, Any]) -> pd.DataFrame:
    """The mean Dice of each method (columns) on each fold, their mean and SD (rows)."""
    dice = pd.DataFrame(figures["folds"]).T
    return pd.concat([dice, dice.agg(["mean", "std"]).rename({"std": "SD"})])


def _figures(scored: pd.DataFrame, params: EvaluateParams) -> dict[str, Any]:
    if (scored["split"] == "valid").all():  # where no distances are measured
        scored = scored.drop(columns=["hd95", "surface_dice"])
    return _defined(summarise(scored, params.bootstrap_samples, params.seed) | detection(scored))


def _defined(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with None in place of NaN, which JSON does not have."""
    return {name: None if value != value else value for name, value in figures.items()}


def verdicts(figures: dict[str, Any]) -> list[str]:
    """What the comparison on the test split shows, a sentence a pair."""
    sentences = []
    for pair, found in figures["paired"].items():
        first, second = (TITLES[name].removeprefix("baseline: ") for name in pair.split("-"))
        known = figures["split"]["patients_known"]
        sentences.append(verdict(Difference(**found), first, second, known))
    return sentences


def split_optimism(
    figures: dict[str, Any], other: dict[str, dict[str, float]], against: str
) -> dict[str, dict[str, float]]:
    """How much higher a method's mean test Dice is on the official split than on another.

    Args:
        figures: Of this run, from `reduce`.
        other: Network → metric → value of the last runs with the other split of the same data.
        against: The one of both splits that is not official: patient or guessed.

    Returns:
        Method → official, `against` and gap; empty unless both splits were run.
    """
    if not other:
        return {}
    before = {name: scores["over_seeds_test_mean_dice"] for name, scores in other.items()}
    before["copy"] = next(iter(other.values()))["test_copy_mean_dice"]
    gaps = {}
    for method, earlier in before.items():
        official, apart = figures["test"][method]["mean_dice"], earlier
        if figures["split"]["method"] == against:
            official, apart = apart, official
        gaps[method] = {"official": official, against: apart, "gap": round(official - apart, 5)}
    return gaps


def summary(figures: dict[str, Any], strata: pd.DataFrame, of: str | None = None) -> str:
    """A comparison in Markdown: two tables and the verdicts.

    Args:
        figures: From `reduce` or `crossvalidated`.
        strata: From `tumorseg.evaluation.strata.strata`.
        of: What was judged; by default the test slices of the split.
    """
    of = of or f"{figures['split']['method']} split, test"
    return "\n\n".join([table(figures, of), category_table(figures, strata), *verdicts(figures)])


def table(figures: dict[str, Any], of: str) -> str:
    """A row a method, over all slices that were judged."""
    group = group_name(figures["split"]["patients_known"])
    lines = [
        f"| {of}: {rests_on(figures, 'test')} | mean Dice "
        f"(95% CI) | mean by {group} (95% CI) | micro Dice (95% CI) | mean IoU | found / Dice 0 |",
        "|---|---|---|---|---|---|",
    ]
    for method, row in figures["test"].items():
        names = ("mean_dice", "mean_dice_by_patient", "micro_dice")
        dice = " | ".join(_interval(row, name) for name in names)
        found = "–"
        if row["detection_rate"] is not None:  # there is a tumour to find
            found = f"{row['detection_rate']:.1%} / {row['share_dice_zero']:.1%}"
        lines.append(f"| {TITLES[method]} | {dice} | {row['mean_iou']:.3f} | {found} |")
    return "\n".join(lines)


def category_table(figures: dict[str, Any], strata: pd.DataFrame) -> str:
    """A row a method and a column a category of the test slices."""
    known = figures["split"]["patients_known"]
    rows = strata[strata["by"] == "category"]
    heads = [
        f"{row['stratum']}: {counted(row['slices'], row['groups'], known)}"
        for row in rows.drop_duplicates("stratum").to_dict("records")
    ]
    lines = [f"| mean Dice (95% CI) | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for method, part in rows.groupby("method", sort=False):
        cells = [_interval(row, "mean_dice") for row in part.to_dict("records")]
        lines.append(f"| {TITLES[str(method)]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rests_on(figures: dict[str, Any], split: str) -> str:
    """The slices and patients, or guessed groups, that the figures of a split come from."""
    row = next(iter(figures[split].values()))
    return counted(row["slices"], row["groups"], figures["split"]["patients_known"])


def _interval(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f}–{row[f'{name}_high']:.3f})"
