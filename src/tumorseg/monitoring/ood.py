"""Out-of-distribution detection: whether a slice looks like the training slices.

A few statistics of the slice, each with a name, are compared with those of the training slices by
Mahalanobis distance. `python benchmarks/familiarity.py` prints detection rates and false alarms.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import COLOURED, Grey, to_grid

METHOD = "mahalanobis-1"  # changes with the statistics
DIGITS = 4  # decimals to which statistics are kept
MAX_SIDE = 256  # of the grid on which statistics are taken, in pixels
FALSE_ALARMS = 0.01  # share of validation slices that are warned about

_AIR = 16  # grey values below are background
_CELLS = 4  # of the layout, per side
_UNIFORM = 2.0  # standard deviation, in grey values
_FAR = 2.5  # standard deviations from which a statistic is named
_MAX_NAMED = 2

NAMES = (
    *("foreground", "brightness", "contrast", "entropy"),
    *(f"quantile_{percent}" for percent in (5, 25, 50, 75, 95)),
    *("detail", "detail_half", "detail_quarter", "symmetry_left_right", "symmetry_up_down"),
    *(f"layout_{row}_{column}" for row in range(_CELLS) for column in range(_CELLS)),
)
_NO_AIR = "its corners are not the black around a head"
# Statistic → what a slice with far too little of it is called, and one with far too much.
_PHRASES: dict[str, tuple[str, str]] = {
    "foreground": ("far more of it is black", "hardly any of it is black"),
    "brightness": ("it is much darker", "it is much brighter"),
    "contrast": ("it has much less contrast", "it has much more contrast"),
    "entropy": ("it has far fewer grey values", "it has far more grey values"),
    "detail": ("it is much smoother, as if blurred", "it is much noisier or has finer texture"),
    "detail_quarter": ("it has fewer structures", "it has more structures"),
    "symmetry_left_right": ("left and right are not alike", "left and right are mirror images"),
    **{f"layout_{corner}": (_NO_AIR, _NO_AIR) for corner in ("0_0", "0_3", "3_0", "3_3")},
}
_GENERAL = "its statistics do not go together, as in a turned, cropped or simulated picture"


def statistics(grey: Grey, side: int) -> NDArray[np.float64]:
    """The statistics of a slice, in the order of `NAMES`.

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
        warnings: One sentence per difference from the training data.
        statistics: From `statistics`; None for a uniform picture, and where the model has no
            reference.
    """

    warnings: list[str]
    statistics: NDArray[np.float64] | None = None


class OodDetector:
    """Out-of-distribution detector: compares slices with the model's training slices.

    Args:
        known: The key `inputs` of model.json, from `describe`; None or empty for a
            model without it, for which only the modality is checked.

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
            self._whiten = np.zeros((len(NAMES),) * 2)  # lower triangular
            self._whiten[np.tril_indices(len(NAMES))] = np.concatenate(known["whiten"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"model.json: inputs is not of the method {METHOD}: run "
                "`dvc repro --force register`, or serve with the version that registered it."
            ) from None

    def distance(self, grey: Grey) -> float:
        """Mahalanobis distance from the training slices of a slice, uint8, shape (H, W)."""
        scores = (statistics(grey, self._side) - self._mean) / self._scale
        return float(np.linalg.norm(self._whiten @ scores))

    def assess(self, grey: Grey, colour: float, modality: str | None = None) -> Assessment:
        """Compares a slice with the training data.

        Args:
            grey: uint8, shape (H, W).
            colour: `Study.colour`.
            modality: `Study.modality`.
        """
        found = []
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
        scores = (taken - self._mean) / self._scale
        if float(np.linalg.norm(self._whiten @ scores)) > self._threshold:
            found.append(f"The slice is unlike the training slices: {_in_words(scores)}.")
        return Assessment(found, taken)


def _in_words(scores: NDArray[np.float64]) -> str:
    """Names the statistics that differ most, or says that only their combination does."""
    far = [place for place in np.argsort(-np.abs(scores)) if abs(scores[place]) >= _FAR]
    phrases = [_PHRASES.get(NAMES[place], ("", ""))[int(scores[place] > 0)] for place in far]
    return " and ".join(list(dict.fromkeys(filter(None, phrases)))[:_MAX_NAMED]) or _GENERAL


def describe(train: NDArray[np.uint8], valid: NDArray[np.uint8], seed: int = 0) -> dict[str, Any]:
    """Fits the key `inputs` of model.json.

    Each training slice is used twice: as it is, and slightly moved, turned, scaled and with another
    exposure, since another scanner or window alone must not cause a warning.

    Args:
        train: Training slices, uint8, shape (N, S, S), N ≥ 2.
        valid: Validation slices, uint8, shape (M, S, S), M ≥ 1; the threshold is such that about
            `FALSE_ALARMS` of them are warned about.
        seed: Of the slight changes.

    Returns:
        The argument of `OodDetector`, ready for JSON.
    """
    from sklearn.covariance import LedoitWolf  # which the service does not need

    side = min(train.shape[-1], MAX_SIDE)
    rng = np.random.default_rng(seed)
    rows = [statistics(changed, side) for grey in train for changed in (grey, _slightly(grey, rng))]
    seen = np.stack(rows)
    mean, scale = seen.mean(axis=0), seen.std(axis=0) + 1e-3
    precision = LedoitWolf(assume_centered=True).fit((seen - mean) / scale).precision_
    # P = W'W with W lower triangular: the Cholesky factor of P turned about, upside down.
    whiten = np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1].T
    known = {
        "method": METHOD,
        "side": side,
        "statistics": list(NAMES),
        "mean": _short(mean),
        "scale": _short(scale),
        "whiten": [_short(row[: place + 1]) for place, row in enumerate(whiten)],
        "threshold": 0.0,
    }
    detector = OodDetector(known)
    distances = [detector.distance(grey) for grey in valid]
    return known | {"threshold": round(float(np.quantile(distances, 1 - FALSE_ALARMS)), 3)}


def _slightly(grey: Grey, rng: np.random.Generator) -> Grey:
    """Moves by up to 8% of the side, turns by 10°, scales by 10%, and changes the exposure."""
    side = len(grey)
    centre, degrees, scale = (side / 2, side / 2), rng.uniform(-10, 10), rng.uniform(0.9, 1.1)
    turn = cv2.getRotationMatrix2D(centre, degrees, scale)
    turn[:, 2] += rng.uniform(-0.08, 0.08, 2) * side
    moved = cv2.warpAffine(np.ascontiguousarray(grey), turn, (side, side)) / 255
    exposed = rng.uniform(0.8, 1.2) * moved ** rng.uniform(0.75, 1.33)
    return (255 * np.clip(exposed, 0, 1)).round().astype(np.uint8)


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
