"""Whether a newcomer replaces the champion: both are judged as served, on the same images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pandas as pd

from tumorseg.data.arrays import read_slice, true_masks
from tumorseg.evaluation.metrics import count, dice
from tumorseg.serving.predictor import Predictor


@dataclass(frozen=True)
class Verdict:
    """Mean Dice on the validation split of the newcomer and of the champion, if there is one."""

    newcomer: float
    champion: float | None
    min_gain: float

    @property
    def promotes(self) -> bool:
        """Whether the newcomer becomes champion."""
        return self.champion is None or self.newcomer > self.champion + self.min_gain

    def __str__(self) -> str:
        """The reason in one sentence."""
        if self.champion is None:
            return f"first model, mean Dice {self.newcomer:.4f} on validation: it is the champion"
        return (
            f"mean Dice on validation {self.newcomer:.4f}, the champion's on the same images "
            f"{self.champion:.4f}: " + ("promoted" if self.promotes else "the champion stays")
        )


def served_dice(model: Path, rows: pd.DataFrame, data: Path) -> float:
    """Mean Dice of a model folder, from image files through the service's own path.

    A champion may have been trained on another grid or other data; its figures of that day would
    not compare.

    Args:
        model: Holds model.onnx and model.json.
        rows: Manifest rows to judge on.
        data: The folder to which their paths are relative.
    """
    predictor = Predictor(model)

    def scores() -> Iterator[float]:
        for path, truth in zip(rows["path"], true_masks(rows), strict=True):
            mask = predictor.probability(read_slice(data / path)) >= predictor.info.threshold
            counts = count(mask, truth)
            yield float(dice(counts["tp"], counts["fp"] + counts["fn"]))

    return fmean(scores())
