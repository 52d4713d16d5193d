"""A study that was segmented, as it waits to be looked at: small, and exact at every threshold."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tumorseg.preprocess import Grey, Mask, to_native
from tumorseg.serving.answers import area_mm2
from tumorseg.serving.familiarity import Familiarity
from tumorseg.serving.formats.decode import Refusal, Rejected, decode, is_picture
from tumorseg.serving.predictor import BATCH, Predictor, Segmentation
from tumorseg.serving.render import level_of, levels, to_png

# Whoever counts slices is told the tumour's share of one, and whether it is unlike the training's.
Note = Callable[[float, bool], None]


def unnoted(_: float, __: bool) -> None:
    """Counts nothing."""


_TOO_LARGE = Refusal(
    413,
    "The study is too large for this page: send it to /segment/volume, or use `tumorseg predict`.",
)


# A volume may take half a gigabyte while it is decoded; others wait for their turn.
_VOLUMES = threading.BoundedSemaphore(2)


@contextmanager
def turn(data: bytes) -> Iterator[None]:
    """Waits until few enough volumes are being decoded; pictures pass."""
    if is_picture(data):
        yield
        return
    with _VOLUMES:
        yield


@dataclass(frozen=True)
class KeptSlice:
    """One slice and what was found there, ready to be sent.

    Attributes:
        image: The slice as a PNG file.
        probability: Its probabilities as a PNG file, as from `levels`.
        histogram: How many pixels each of these levels has, int64, shape (256,).
        width: Of the slice, in pixels.
        height: Of the slice, in pixels.
        area: Of the tumour at the model's own threshold, in pixels.
        confidence: Mean probability inside this tumour; None where there is none.
        warnings: A sentence each: what about the slice is unlike the training data.
    """

    image: bytes
    probability: bytes
    histogram: NDArray[np.int64]
    width: int
    height: int
    area: int
    confidence: float | None
    warnings: list[str]

    def answer(self, spacing: tuple[float, float] | None) -> dict[str, Any]:
        """Says what was found, with `Study.spacing` in mm²; ready for JSON."""
        return {
            "width": self.width,
            "height": self.height,
            "area_px": self.area,
            "area_mm2": area_mm2(self.area, spacing),
            "area_fraction": self.area / (self.width * self.height),
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
        each = (len(s.image) + len(s.probability) + s.histogram.nbytes for s in self.slices)
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
    predictor: Predictor, known: Familiarity, data: bytes, most: int, note: Note = unnoted
) -> Kept:
    """Segments a study a few slices at a time, so that only their PNG files pile up.

    Args:
        predictor: The model.
        known: What its training data look like.
        data: The bytes of the file.
        most: What the outcome may hold, in bytes.
        note: Is told about each slice.

    Raises:
        Rejected: If the file cannot be used, or would hold more than `most`.
    """
    with turn(data):
        study = decode(data)
        kept = Kept(
            study.kind, study.spacing, study.thickness, b"" if study.kind == "picture" else data
        )
        for start in range(0, len(study.slices), BATCH):
            some = study.slices[start : start + BATCH]
            for grey, found in zip(some, predictor.segment_many(some), strict=True):
                warnings = known.warnings(grey, study.colour)
                note(found.area_fraction, bool(warnings))
                kept.slices.append(_prepared(grey, found, predictor.info.threshold, warnings))
            if kept.size > most:
                raise Rejected(*_TOO_LARGE)
        return kept


def _prepared(grey: Grey, found: Segmentation, threshold: float, warnings: list[str]) -> KeptSlice:
    height, width = grey.shape[0], grey.shape[1]
    native = to_native(found.probability, (height, width))
    graded = levels(native, found.mask, level_of(threshold))
    return KeptSlice(
        image=to_png(grey),
        probability=to_png(graded),
        histogram=np.bincount(graded.ravel(), minlength=256),
        width=width,
        height=height,
        area=found.area_px,
        confidence=found.confidence,
        warnings=warnings,
    )
