"""What the training slices look like, for the service to warn about an input that does not."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from tumorseg.imaging.preprocess import Grey
from tumorseg.monitoring.ood import METHOD, MOST_SIDE, NAMES, OodDetector, statistics

FALSE_ALARMS = 0.01  # share of validation slices that are warned about
_DIGITS = 6  # significant ones


def describe(train: NDArray[np.uint8], valid: NDArray[np.uint8], seed: int = 0) -> dict[str, Any]:
    """Fits the key `inputs` of model.json.

    Each training slice counts twice: as it is, and slightly moved, turned, scaled and exposed
    otherwise, since another scanner or window must not be enough for a warning.

    Args:
        train: The training slices, uint8, shape (N, S, S), N from 2 on.
        valid: The validation slices, uint8, shape (M, S, S), M from 1 on; the threshold is such
            that about `FALSE_ALARMS` of them are warned about.
        seed: Of the slight changes.

    Returns:
        What `OodDetector` takes, ready for JSON.
    """
    side = min(train.shape[-1], MOST_SIDE)
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
    familiar = OodDetector(known)
    distances = [familiar.distance(grey) for grey in valid]
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
    return [float(f"{value:.{_DIGITS}g}") for value in values]
