"""Whether a slice looks like the slices that the model was trained on.

A few statistics of the slice, all cheap and each with a name, are compared with those of the
training slices by Mahalanobis distance: by how much a slice is off, given how the statistics vary
together. `python benchmarks/familiarity.py` prints what is noticed and how often it is wrong.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import COLOURED, Grey, to_grid

METHOD = "mahalanobis-1"  # another number: the statistics are others
DIGITS = 4  # decimals to which statistics are kept
MOST_SIDE = 256  # of the grid on which statistics are taken, in pixels

_AIR = 16  # grey values below are background
_CELLS = 4  # of the layout, a side
_UNIFORM = 2.0  # standard deviation, in grey values
_FAR = 2.5  # standard deviations from which a statistic is worth a word
_UNFIT = 5.0  # the same for fine texture, given all other statistics
_MOST_WORDS = 2

NAMES = (
    *("foreground", "brightness", "contrast", "entropy"),
    *(f"quantile_{percent}" for percent in (5, 25, 50, 75, 95)),
    *("detail", "detail_half", "detail_quarter", "symmetry_left_right", "symmetry_up_down"),
    *(f"layout_{row}_{column}" for row in range(_CELLS) for column in range(_CELLS)),
)
_NO_AIR = "its corners are not the black around a head"
# What is said of a slice that has far too little of a statistic, and of one that has too much.
_SAID: dict[str, tuple[str, str]] = {
    "foreground": ("far more of it is black", "hardly any of it is black"),
    "brightness": ("it is much darker", "it is much brighter"),
    "contrast": ("it has much less contrast", "it has much more contrast"),
    "entropy": ("it has far fewer grey values", "it has far more grey values"),
    "detail": ("it is much smoother, as if blurred", "it is much noisier or has finer texture"),
    "detail_quarter": ("it has fewer structures", "it has more structures"),
    "symmetry_left_right": ("left and right are not alike", "left and right are mirror images"),
    **{f"layout_{corner}": (_NO_AIR, _NO_AIR) for corner in ("0_0", "0_3", "3_0", "3_3")},
}
_TEXTURE = "its fine texture does not go with its coarse structures, as in a simulated picture"
_GENERAL = "its parts lie otherwise, as in a turned or cropped slice or another picture"


def statistics(grey: Grey, side: int) -> NDArray[np.float64]:
    """What is compared, in the order of `NAMES`.

    Args:
        grey: uint8, shape (H, W), not empty.
        side: Of the grid on which they are taken, in pixels, from 16 on.

    Returns:
        float64, shape (len(NAMES),); finite.
    """
    full = grey if grey.shape == (side, side) else to_grid(np.ascontiguousarray(grey), side)
    half, quarter = (
        cv2.resize(full, (side // part,) * 2, interpolation=cv2.INTER_AREA) for part in (2, 4)
    )
    counts = np.bincount(full.ravel(), minlength=256)
    coarse = quarter.astype(np.float32) / 255
    centred = coarse - coarse.mean()
    energy = float((centred**2).sum()) + 1e-6
    return np.array(
        [
            *_tissue(counts),
            *(_detail(plane) for plane in (full, half, quarter)),
            float((centred * centred[:, ::-1]).sum()) / energy,
            float((centred * centred[::-1]).sum()) / energy,
            *cv2.resize(coarse, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).ravel(),
        ],
        np.float64,
    )


def _tissue(counts: NDArray[np.int64]) -> list[float]:
    """The statistics up to the quantiles, from the 256-bin histogram."""
    total, tissue = int(counts.sum()), counts[_AIR:]
    inside = max(int(tissue.sum()), 1)
    values = np.arange(_AIR, 256) / 255
    mean = float(tissue @ values) / inside
    spread = float(np.sqrt(max(float(tissue @ values**2) / inside - mean**2, 0.0)))
    shares = counts.reshape(32, 8).sum(axis=1) / total
    shares = shares[shares > 0]
    reached = np.searchsorted(np.cumsum(tissue), np.array([0.05, 0.25, 0.5, 0.75, 0.95]) * inside)
    quantiles = values[np.minimum(reached, len(values) - 1)]
    entropy = -float((shares * np.log2(shares)).sum())
    return [int(tissue.sum()) / total, mean, spread, entropy, *quantiles.tolist()]


def _detail(plane: Grey) -> float:
    """Logarithm of the mean difference of neighbouring pixels, relative to the plane's spread."""
    difference = cv2.norm(plane[1:], plane[:-1], cv2.NORM_L1)
    difference += cv2.norm(plane[:, 1:], plane[:, :-1], cv2.NORM_L1)
    spread = float(cv2.meanStdDev(plane)[1].item())
    return float(np.log((1e-3 + difference / plane.size) / (1.0 + spread)))


@dataclass(frozen=True)
class Assessment:
    """How one slice compares with the training slices.

    Attributes:
        warnings: A sentence each: what about the slice is unlike the training data.
        statistics: From `statistics`; None of a uniform picture, which has none worth comparing,
            and where the model does not know its training slices.
    """

    warnings: list[str]
    statistics: NDArray[np.float64] | None = None


class OodDetector:
    """Out-of-distribution detector: compares slices with the model's training slices.

    Args:
        known: The key `inputs` of model.json, from `ood_reference.describe`; None or empty for a
            model that was registered without, of which no slice is said to be unlike its own.

    Raises:
        InputError: `known` is of another method or damaged.
    """

    def __init__(self, known: dict[str, Any] | None) -> None:
        self.known = known
        if not known:
            return
        try:
            if known["method"] != METHOD or tuple(known["statistics"]) != NAMES:
                raise ValueError
            self._side, self._threshold = int(known["side"]), float(known["threshold"])
            self._mean, self._scale = (np.array(known[k], float) for k in ("mean", "scale"))
            if not (self._mean.shape == self._scale.shape == (len(NAMES),) and self._side >= 16):
                raise ValueError
            self._whiten = np.zeros((len(NAMES),) * 2)
            for place, row in enumerate(self._whiten):  # up to the diagonal; the rest is 0
                row[: place + 1] = np.reshape(known["whiten"][place], place + 1)
        except (IndexError, KeyError, TypeError, ValueError):
            raise InputError(
                f"model.json: inputs is not what this version knows as {METHOD}: run "
                "`dvc repro --force register`, or serve with the version that registered it."
            ) from None

    def distance(self, grey: Grey) -> float:
        """How far a slice is from the training slices; beyond `known["threshold"]` is unlike.

        Args:
            grey: uint8, shape (H, W), not empty.
        """
        return float(np.linalg.norm(self._whiten @ self._scores(statistics(grey, self._side))))

    def _scores(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        return (found - self._mean) / self._scale

    def warnings(self, grey: Grey, colour: float, modality: str | None = None) -> list[str]:
        """The warnings of `assess` alone."""
        return self.assess(grey, colour, modality).warnings

    def assess(self, grey: Grey, colour: float, modality: str | None = None) -> Assessment:
        """Takes a slice's statistics, and says what about it is unlike the training data.

        Args:
            grey: uint8, shape (H, W).
            colour: `Study.colour`.
            modality: `Study.modality`.
        """
        found = []
        # Whatever the model knows of its training slices, all of them are MR.
        if modality not in (None, "MR"):
            found.append(f"The DICOM header says {modality}, and the model was trained on MR.")
        if not self.known:
            return Assessment(found)
        if not grey.size or float(cv2.meanStdDev(np.ascontiguousarray(grey))[1].item()) < _UNIFORM:
            return Assessment(
                [*found, "The picture is uniform: there is nothing in it to segment."]
            )
        if colour > COLOURED:
            found.append(
                f"The picture looks like a colour photograph: {colour:.0%} of it is coloured, and "
                "MR slices are grey."
            )
        taken = statistics(grey, self._side)
        scores = self._scores(taken)
        off = self._whiten @ scores
        if float(np.linalg.norm(off)) > self._threshold:
            found.append(f"The slice is unlike the training slices: {self._in_words(scores, off)}.")
        return Assessment(found, taken)

    def _in_words(self, scores: NDArray[np.float64], off: NDArray[np.float64]) -> str:
        """Names the statistics that are furthest off, or says that only their combination is."""
        words: list[str] = []
        for place in np.argsort(-np.abs(scores)):
            if abs(scores[place]) < _FAR or len(words) == _MOST_WORDS:
                break
            said = _SAID.get(NAMES[place])
            if said is not None and said[int(scores[place] > 0)] not in words:
                words.append(said[int(scores[place] > 0)])
        if words:
            return " and ".join(words)
        # A row of the precision matrix over the root of its diagonal: how far one statistic is
        # from what all others let expect, in standard deviations.
        column = self._whiten[:, NAMES.index("detail")]
        return _TEXTURE if abs(column @ off) > _UNFIT * np.linalg.norm(column) else _GENERAL
