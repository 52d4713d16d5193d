"""Results of the comparison: figures, verdicts, split optimism, and the table."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from tumorseg.core.params import NETWORKS, EvaluateParams
from tumorseg.evaluation.calibration import Reliability
from tumorseg.evaluation.metrics import detection, summarise
from tumorseg.evaluation.paired import Difference, comparisons, verdict

TITLES = {
    "unet": "U-Net",
    "attention_unet": "Attention U-Net",
    "copy": "baseline: copy of the most similar train slice",
    "intensity": "baseline: best intensity band",
    "background": "baseline: all background",
}

Run = tuple[str, int]  # network and seed


@dataclass(frozen=True)
class Comparison:
    """The scores of all methods, from which `reduce` takes every figure.

    Attributes:
        scored: A row a method, seed and slice: method, seed (none for baselines), split, path,
            group, category, tp, fp, fn, tn, dice, iou, lesions, lesions_found, calls, calls_right,
            hd95 and surface_dice (on test), mask_rle, truth_rle. In pixels of the image's own
            size, distances in `unit`.
        thresholds: The probability from which each run calls a pixel tumour.
        reliability: Network → how its probabilities on test compare with the truth.
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
        split; valid and test: method → figure; runs: network-seed → split → figure; thresholds;
        distances: their unit and tolerance; paired: the networks with each other, with the copy
        baseline and with the strongest one; winner and winner_seed.
    """
    scored = comparison.scored
    figures: dict[str, Any] = {"split": {key: split[key] for key in ("method", "digest")}} | {
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
    figures["thresholds"] = {f"{name}-{s}": t for (name, s), t in comparison.thresholds.items()}
    figures["distances"] = {"unit": comparison.unit, "tolerance": params.surface_tolerance}
    test = scored[scored["split"] == "test"]
    baselines = [str(name) for name in figures["test"] if name not in NETWORKS]
    strongest = max(baselines, key=lambda name: figures["test"][name]["mean_dice"])
    beaten = dict.fromkeys(("copy", strongest))
    pairs = [("attention_unet", "unet"), *((name, other) for name in NETWORKS for other in beaten)]
    figures["paired"] = comparisons(test, pairs, params.bootstrap_samples, params.seed)
    winner = max(NETWORKS, key=lambda name: figures["valid"][name]["mean_dice"])
    seeds = [seed for name, seed in comparison.thresholds if name == winner]
    best = max(seeds, key=lambda s: figures["runs"][f"{winner}-{s}"]["valid"]["mean_dice"])
    return figures | {"winner": winner, "winner_seed": best}


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
        sentences.append(verdict(Difference(**found), first, second))
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


def table(figures: dict[str, Any]) -> str:
    """The comparison on the test split as a Markdown table."""
    split = f"{figures['split']['method']} test split"
    lines = [
        f"| {split} | mean Dice (95% CI) | micro Dice (95% CI) | mean IoU | micro IoU | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for method, row in figures["test"].items():
        mean, micro = (
            f"{row[name]:.3f} ({row[f'{name}_low']:.3f}–{row[f'{name}_high']:.3f})"
            for name in ("mean_dice", "micro_dice")
        )
        others = f"{row['mean_iou']:.3f} | {row['micro_iou']:.3f} | {row['accuracy']:.2%}"
        lines.append(f"| {TITLES[method]} | {mean} | {micro} | {others} |")
    return "\n".join(lines)
