"""A study's bytes to its masks: decode, segment each slice, measure, compare with training data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tumorseg.imaging.decode import decode
from tumorseg.imaging.preprocess import Grey
from tumorseg.imaging.study import Study
from tumorseg.inference.predictor import BATCH, Segmentation
from tumorseg.monitoring.ood import Assessment, OodDetector

# Segments slices, uint8, shape (H, W) each, in their order; may raise Rejected.
SegmentSlices = Callable[[Sequence[Grey]], list[Segmentation]]
# Receives every slice that was segmented, for metrics and statistics.
Observer = Callable[[Segmentation, Assessment], None]


def unobserved(_: Segmentation, __: Assessment) -> None:
    """The observer that does nothing."""


@dataclass(frozen=True)
class SegmentedSlice:
    """One slice of a study with its result.

    Attributes:
        grey: The slice, uint8, shape (H, W).
        found: Its mask and measures.
        warnings: A sentence each: what about the slice is unlike the training data.
    """

    grey: Grey
    found: Segmentation
    warnings: list[str]


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
        return study, self._slices(study)

    def finish(self, study: Study, grey: Grey, found: Segmentation) -> SegmentedSlice:
        """Compares a segmented slice of `study` with the training data and reports it."""
        assessment = self._detector.assess(grey, study.colour, study.modality)
        self._observe(found, assessment)
        return SegmentedSlice(grey, found, assessment.warnings)

    def _slices(self, study: Study) -> Iterator[SegmentedSlice]:
        for start in range(0, len(study.slices), BATCH):
            batch = study.slices[start : start + BATCH]
            for grey, found in zip(batch, self._segment(batch), strict=True):
                yield self.finish(study, grey, found)
