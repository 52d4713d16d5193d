"""A study that was segmented, as it waits to be looked at: small, and exact at every threshold."""

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from werkzeug.exceptions import ServiceUnavailable

from tumorseg.imaging.decode import Refusal, Rejected, decode, is_picture
from tumorseg.imaging.preprocess import Grey, Mask, to_native
from tumorseg.imaging.render import level_of, levels, to_png
from tumorseg.inference.answers import area_mm2
from tumorseg.inference.predictor import BATCH, Segmentation
from tumorseg.monitoring.ood import Familiarity, Look

# Finds the tumour in each slice, uint8, shape (H, W); raises Rejected, or an HTTPException.
Segment = Callable[[Sequence[Grey]], list[Segmentation]]
# Whoever counts slices is told what was found in one, and what it looks like.
Note = Callable[[Segmentation, Look], None]


def unnoted(_: Segmentation, __: Look) -> None:
    """Counts nothing."""


_TOO_LARGE = Refusal(
    413,
    "The study is too large for this page: send it to /segment/volume, or use `tumorseg predict`.",
)
_FULL = "The service is busy with other volumes: send the file again in a moment."


class Turns:
    """Lets few volumes be here at a time, since each may take half a gigabyte.

    One that finds no place is sent away: waiting, it would keep a thread from everybody else.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._places = threading.BoundedSemaphore(most)

    @contextmanager
    def turn(self, data: bytes) -> Iterator[None]:
        """Holds a place for a file while it is read; pictures need none.

        Raises:
            ServiceUnavailable: If there is none.
        """
        if is_picture(data):
            yield
            return
        if not self._places.acquire(blocking=False):
            raise ServiceUnavailable(_FULL)
        try:
            yield
        finally:
            self._places.release()


@dataclass(frozen=True)
class KeptSlice:
    """One slice and what was found there.

    Attributes:
        grey: Its values, uint8, shape (H, W); few slices of a volume are ever looked at.
        probability: Its probabilities as a PNG file, as from `levels`.
        histogram: How many pixels each of these levels has, int64, shape (256,).
        area: Of the tumour at the model's own threshold, in pixels.
        confidence: Mean probability inside this tumour; None where there is none.
        warnings: A sentence each: what about the slice is unlike the training data.
    """

    grey: Grey
    probability: bytes
    histogram: NDArray[np.int64]
    area: int
    confidence: float | None
    warnings: list[str]

    def answer(self, spacing: tuple[float, float] | None) -> dict[str, Any]:
        """Says what was found, with `Study.spacing` in mm²; ready for JSON."""
        return {
            "width": self.grey.shape[1],
            "height": self.grey.shape[0],
            "area_px": self.area,
            "area_mm2": area_mm2(self.area, spacing),
            "area_fraction": self.area / self.grey.size,
            "confidence": self.confidence,
            "warnings": self.warnings,
            # From it follows the area at any other threshold; most levels are at the low end.
            "histogram": np.trim_zeros(self.histogram, "b").tolist(),
        }

    def mask(self, level: int) -> Mask:
        """The tumour, bool, shape (H, W), at a threshold's level."""
        return np.asarray(Image.open(io.BytesIO(self.probability))) >= level


@dataclass(frozen=True)
class Kept:
    """A study that was segmented.

    Attributes:
        kind: As in `Study`.
        spacing: As in `Study`.
        thickness: As in `Study`.
        data: The file as it was sent, for an answer on its own grid; empty for a picture.
        slices: In the study's order.
    """

    kind: str
    spacing: tuple[float, float] | None
    thickness: float | None
    data: bytes
    slices: list[KeptSlice] = field(default_factory=list)

    @property
    def size(self) -> int:
        """What it holds, in bytes."""
        each = (s.grey.nbytes + len(s.probability) + s.histogram.nbytes for s in self.slices)
        return len(self.data) + sum(each)

    def answer(self) -> dict[str, Any]:
        """Says what was found where, at the model's own threshold; ready for JSON."""
        return {
            "kind": self.kind,
            "spacing": self.spacing,
            "thickness": self.thickness,
            "slices": [s.answer(self.spacing) for s in self.slices],
        }


def segmented(
    segment: Segment, threshold: float, known: Familiarity, data: bytes, most: int, note: Note
) -> Kept:
    """Segments a study a few slices at a time, so that only what is kept of them piles up.

    Args:
        segment: The model.
        threshold: The model's own.
        known: What its training data look like.
        data: The bytes of the file.
        most: What the outcome may hold, in bytes.
        note: Is told about each slice.

    Raises:
        Rejected: If the file cannot be used, or would hold more than `most`.
    """
    study = decode(data)
    kept = Kept(
        study.kind, study.spacing, study.thickness, b"" if study.kind == "picture" else data
    )
    for start in range(0, len(study.slices), BATCH):
        some = study.slices[start : start + BATCH]
        for grey, found in zip(some, segment(some), strict=True):
            look = known.look(grey, study.colour, study.modality)
            note(found, look)
            kept.slices.append(_prepared(grey, found, threshold, look.warnings))
        if kept.size > most:
            raise Rejected(*_TOO_LARGE)
    return kept


def _prepared(grey: Grey, found: Segmentation, threshold: float, warnings: list[str]) -> KeptSlice:
    native = to_native(found.probability, (grey.shape[0], grey.shape[1]))
    graded = levels(native, found.mask, level_of(threshold))
    return KeptSlice(
        grey=grey,
        probability=to_png(graded),
        histogram=np.bincount(graded.ravel(), minlength=256),
        area=found.area_px,
        confidence=found.confidence,
        warnings=warnings,
    )
