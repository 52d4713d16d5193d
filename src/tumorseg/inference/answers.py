"""What a caller is told about the tumours in what was sent, by service, page and client alike."""

import base64
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:  # the client only reads answers, and needs neither network nor pictures for it
    from tumorseg.imaging.preprocess import Grey
    from tumorseg.imaging.study import Study
    from tumorseg.inference.predictor import ModelInfo, Segmentation

_MOST_WARNINGS = 10  # they travel in a header


class SliceAnswer(BaseModel):
    """The tumour found in one slice, at the slice's own size."""

    model_config = ConfigDict(frozen=True)

    mask_png: str = Field(description="The mask as a PNG file in base64: 255 is tumour, 0 is not.")
    width: int = Field(description="Width of slice and mask, in pixels.")
    height: int = Field(description="Height of slice and mask, in pixels.")
    area_px: int = Field(description="Area of the tumour, in pixels.")
    area_mm2: float | None = Field(
        description="Area of the tumour, in mm²; null where the spacing of pixels is not known."
    )
    area_fraction: float = Field(description="Share of the slice that is tumour, 0 to 1.")
    confidence: float | None = Field(
        description="Mean probability inside the mask; null where no tumour was found."
    )
    contours: list[list[list[float]]] = Field(
        description="One polygon [[x, y], …] a region, in pixels from the upper left corner."
    )
    warnings: list[str] = Field(
        description="A sentence each: what about the slice is unlike the training data."
    )


class ModelNamed(BaseModel):
    """Which model answered."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_version: str = Field(description="Version of the model in its registry.")
    model_digest: str = Field(description="SHA-256 of the model file.")
    architecture: str = Field(description="Architecture of the network.")
    inputs_known: bool = Field(
        default=False,
        description="Whether the model knows what its training slices look like; if not, no "
        "warning tells slices that are unlike them.",
    )

    @classmethod
    def of(cls, info: "ModelInfo") -> "ModelNamed":
        """Names a model."""
        return cls(
            model_version=info.version,
            model_digest=info.digest,
            architecture=info.architecture,
            inputs_known=bool(info.inputs),
        )


class ModelVersion(BaseModel):
    """The model that `/version` names."""

    version: str = Field(description="Version of the model in its registry.")
    digest: str = Field(description="SHA-256 of the model file.")
    architecture: str = Field(description="Architecture of the network.")


class SegmentAnswer(SliceAnswer, ModelNamed):
    """What `/segment` answers."""

    request_id: str = Field(description="Names the request, also in the service's log.")
    probability_png: str | None = Field(
        default=None,
        description="Only where it was asked for: the probability of tumour at the slice's own "
        "size as an 8-bit grey PNG file in base64; 255 is 1.",
    )


class UploadAnswer(ModelNamed):
    """What `/upload` answers."""

    segmented_img: str = Field(description="Below /segmented/: the slice with the tumour in red.")
    mask_img: str = Field(description="Below /segmented/: the mask; 255 is tumour, 0 is not.")
    uploaded_img: str = Field(description="Below /uploads/: the slice in grey.")
    width: int = Field(description="Width of the slice, in pixels.")
    height: int = Field(description="Height of the slice, in pixels.")
    area_px: int = Field(description="Area of the tumour, in pixels.")
    area_fraction: float = Field(description="Share of the slice that is tumour, 0 to 1.")
    warnings: list[str] = Field(
        description="A sentence each: what about the slice is unlike the training data."
    )
    request_id: str = Field(description="Names the request, also in the service's log.")


class UploadFailure(BaseModel):
    """What `/upload` answers with status 200 to a form without a file."""

    error: Literal["No file part", "No selected file"] = Field(
        description="No field `file`, or one without a file's name."
    )


class Failure(BaseModel):
    """What is answered in place of a result, with a status from 400 up."""

    error: str = Field(description="One sentence: what is wrong and what to do.")
    request_id: str = Field(description="Names the request, also in the service's log.")


class SliceFailure(BaseModel):
    """What stands in place of one file's result among those of `/segment/batch`."""

    error: str = Field(description="One sentence: what is wrong with this file and what to do.")


class BatchAnswer(ModelNamed):
    """What `/segment/batch` answers."""

    request_id: str = Field(description="Names the request, also in the service's log.")
    results: list[SliceAnswer | SliceFailure] = Field(
        description="One for each file, in the order sent."
    )


class Version(BaseModel):
    """What `/version` answers."""

    bento: str = Field(description="Name and version of the bento, a digest of model and code.")
    model: ModelVersion
    git: str = Field(description="Commit of the code that trained the model.")
    data: str = Field(description="MD5 by which DVC knows the data that it was trained on.")


def area_mm2(area_px: int, spacing: tuple[float, float] | None) -> float | None:
    """An area in mm², from pixels and their (row, column) spacing in mm; None if unknown."""
    return None if spacing is None else round(area_px * spacing[0] * spacing[1], 3)


def volume_mm3(area_px: int, study: "Study") -> float | None:
    """A volume in mm³ from the area of all slices, in pixels; None if a spacing is unknown."""
    if study.spacing is None or study.thickness is None:
        return None
    return round(area_px * study.spacing[0] * study.spacing[1] * study.thickness, 3)


def slice_answer(
    grey: "Grey", study: "Study", found: "Segmentation", warnings: list[str]
) -> SliceAnswer:
    """Puts what was found in one slice of a study into words and a PNG.

    Args:
        grey: The slice, uint8, shape (H, W).
        study: What it is from.
        found: From the predictor.
        warnings: From `familiarity`.
    """
    from tumorseg.imaging.render import mask_png

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
    """Says each slice's warnings once, with how many slices they concern; the most frequent first.

    Args:
        warnings: One list a slice.
    """
    counts = Counter(sentence for said in warnings for sentence in said)
    return [
        sentence if number == len(warnings) else f"{number} of {len(warnings)} slices: {sentence}"
        for sentence, number in counts.most_common(_MOST_WARNINGS)
    ]


def probability_png(found: "Segmentation") -> str:
    """The probability of tumour at the slice's own size: 8-bit PNG in base64; 255 is 1."""
    from tumorseg.imaging.preprocess import to_native
    from tumorseg.imaging.render import to_png

    native = to_native(found.probability, found.mask.shape)
    return base64.b64encode(to_png((native * 255).round().astype("uint8"))).decode()
