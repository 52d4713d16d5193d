"""A study's bytes to its masks: decode, segment each slice, measure, compare with training data."""

import base64
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tumorseg.imaging.decode import decode
from tumorseg.imaging.preprocess import Grey, to_native
from tumorseg.imaging.render import mask_png, to_png
from tumorseg.imaging.study import Study
from tumorseg.inference.answers import SliceAnswer
from tumorseg.inference.predictor import BATCH, Segmentation
from tumorseg.monitoring.ood import Assessment, OodDetector

_MOST_WARNINGS = 10  # they travel in a header
# Segments slices, uint8, shape (H, W) each, in their order; may raise Rejected.
SegmentSlices = Callable[[Sequence[Grey]], list[Segmentation]]
# Receives every slice that was segmented, for metrics and statistics.
Observer = Callable[[Segmentation, Assessment], None]


def unobserved(_: Segmentation, __: Assessment) -> None:
    """The observer that does nothing."""


@dataclass(frozen=True)
class SegmentedSlice:
    """One slice of a study with its result."""

    grey: Grey  # uint8, shape (H, W)
    found: Segmentation
    warnings: list[str]  # sentences about what is unlike the training data


class StudySegmenter:
    """Segments whole studies; safe to share between threads.

    Args:
        segment: Runs the network on slices.
        detector: Compares slices with the training data.
        observe: Is called once a slice.
    """

    def __init__(
        self, segment: SegmentSlices, detector: OodDetector, observe: Observer = unobserved
    ) -> None:
        self._segment = segment
        self._detector = detector
        self._observe = observe

    def open(self, data: bytes) -> tuple[Study, Iterator[SegmentedSlice]]:
        """Decodes a file and segments its slices as they are iterated over, a batch at a time.

        Args:
            data: The bytes of a JPEG, PNG, DICOM or NIfTI file, or of a zip of a DICOM series.

        Returns:
            The study, and its slices with their results, in order.

        Raises:
            Rejected: The file cannot be used.
        """
        study = decode(data)
        batches = (study.slices[n : n + BATCH] for n in range(0, len(study.slices), BATCH))
        return study, (
            self.finish(study, grey, found)
            for batch in batches
            for grey, found in zip(batch, self._segment(batch), strict=True)
        )

    def finish(self, study: Study, grey: Grey, found: Segmentation) -> SegmentedSlice:
        """Compares a segmented slice of `study` with the training data and reports it."""
        assessment = self._detector.assess(grey, study.colour, study.modality)
        self._observe(found, assessment)
        return SegmentedSlice(grey, found, assessment.warnings)


def area_mm2(area_px: int, spacing: tuple[float, float] | None) -> float | None:
    """An area in mm², from pixels and their (row, column) spacing in mm; None if unknown."""
    return None if spacing is None else round(area_px * spacing[0] * spacing[1], 3)


def volume_mm3(area_px: int, study: Study) -> float | None:
    """A volume in mm³ from the area of all slices, in pixels; None if a spacing is unknown."""
    if study.spacing is None or study.thickness is None:
        return None
    return round(area_px * study.spacing[0] * study.spacing[1] * study.thickness, 3)


def slice_answer(grey: Grey, study: Study, found: Segmentation, warnings: list[str]) -> SliceAnswer:
    """The answer of the service for one slice, uint8, shape (H, W), of a study."""
    return SliceAnswer(
        mask_png=base64.b64encode(mask_png(found.mask)).decode(),
        width=grey.shape[1],
        height=grey.shape[0],
        area_px=found.area_px,
        area_mm2=area_mm2(found.area_px, study.spacing),
        area_fraction=found.area_fraction,
        confidence=found.confidence,
        contours=found.contours,
        warnings=warnings,
    )


def summed_up(warnings: Sequence[Sequence[str]]) -> list[str]:
    """The most frequent warnings of the slices of a volume, each with the number of its slices.

    Args:
        warnings: One list per slice.
    """
    counts = Counter(sentence for one in warnings for sentence in one)
    return [
        sentence if number == len(warnings) else f"{number} of {len(warnings)} slices: {sentence}"
        for sentence, number in counts.most_common(_MOST_WARNINGS)
    ]


def probability_png(found: Segmentation) -> str:
    """The probability of tumour at the slice's own size: 8-bit PNG in base64; 255 is 1."""
    native = to_native(found.probability, found.mask.shape)
    return base64.b64encode(to_png((native * 255).round().astype("uint8"))).decode()
