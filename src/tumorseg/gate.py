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
    """Mean Dice on the validation split of the newcomer and of the champion, if there is one.

    Attributes:
        newcomer: Its mean Dice.
        champion: That of the champion; None where there is none.
        min_gain: By how much the newcomer must be better.
        same_split: Whether the champion was trained on the train side of this very split.
        same_model: Whether both are the very same network at the same threshold; what is described
            with it may be newer.
    """

    newcomer: float
    champion: float | None
    min_gain: float
    same_split: bool = True
    same_model: bool = False

    @property
    def promotes(self) -> bool:
        """Whether the newcomer becomes champion."""
        if self.champion is None or self.same_model:
            return True
        return self.newcomer > self.champion + self.min_gain

    def __str__(self) -> str:
        """The reason in one sentence."""
        if self.champion is None:
            return f"first model, mean Dice {self.newcomer:.4f} on validation: it is the champion"
        if self.same_model:
            return "the champion's own network, described anew: it takes the champion's place"
        sentence = (
            f"mean Dice on validation {self.newcomer:.4f}, the champion's on the same images "
            f"{self.champion:.4f}"
        )
        if self.min_gain:
            sentence += f", to be exceeded by register.min_gain {self.min_gain:g}"
        sentence += ": promoted" if self.promotes else ": the champion stays"
        if not self.same_split:
            sentence += "; it saw another split and may remember what it is judged on here"
        return sentence


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
            mask = predictor.segment(read_slice(data / path)).mask
            counts = count(mask, truth)
            yield float(dice(counts["tp"], counts["fp"] + counts["fn"]))

    return fmean(scores())
