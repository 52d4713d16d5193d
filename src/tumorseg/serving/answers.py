"""What a caller is told about the tumours in what was sent; the same for service, page and client."""

import base64

from pydantic import BaseModel, ConfigDict, Field

from tumorseg.preprocess import Grey
from tumorseg.serving.decode import Study
from tumorseg.serving.predictor import ModelInfo, Segmentation
from tumorseg.serving.render import mask_png


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

    @classmethod
    def of(cls, info: ModelInfo) -> "ModelNamed":
        """Names a model."""
        return cls(
            model_version=info.version, model_digest=info.digest, architecture=info.architecture
        )


def area_mm2(area_px: int, spacing: tuple[float, float] | None) -> float | None:
    """An area in mm², from pixels and their (row, column) spacing in mm; None if unknown."""
    return None if spacing is None else round(area_px * spacing[0] * spacing[1], 3)


def slice_answer(
    grey: Grey, study: Study, found: Segmentation, warnings: list[str]
) -> SliceAnswer:
    """Puts what was found in one slice of a study into words and a PNG.

    Args:
        grey: The slice, uint8, shape (H, W).
        study: What it is from.
        found: From the predictor.
        warnings: From `familiarity`.
    """
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
