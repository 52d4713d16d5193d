"""The answers of the service, for service, page and client alike."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Measured(BaseModel):
    """The size of a slice and of the tumour in it."""

    width: int = Field(description="Width of the slice, in pixels.")
    height: int = Field(description="Height of the slice, in pixels.")
    area_px: int = Field(description="Area of the tumour, in pixels.")
    area_fraction: float = Field(description="Share of the slice that is tumour, 0 to 1.")
    warnings: list[str] = Field(
        description="A sentence each: what about the slice is unlike the training data."
    )


class _Numbered(BaseModel):
    request_id: str = Field(description="Names the request, also in the service's log.")


class SliceAnswer(_Measured):
    """The tumour found in one slice, at the slice's own size."""

    model_config = ConfigDict(frozen=True)

    mask_png: str = Field(description="The mask as a PNG file in base64: 255 is tumour, 0 is not.")
    area_mm2: float | None = Field(
        description="Area of the tumour, in mm²; null where the spacing of pixels is not known."
    )
    confidence: float | None = Field(
        description="Mean probability inside the mask; null where no tumour was found."
    )
    contours: list[list[list[float]]] = Field(
        description="One polygon [[x, y], …] a region, in pixels from the upper left corner."
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
    def of(cls, info: Any) -> "ModelNamed":
        """Names a model by its `ModelInfo`."""
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


class SegmentAnswer(SliceAnswer, ModelNamed, _Numbered):
    """What `/segment` answers."""

    probability_png: str | None = Field(
        default=None,
        description="Only where it was asked for: the probability of tumour at the slice's own "
        "size as an 8-bit grey PNG file in base64; 255 is 1.",
    )


class UploadAnswer(_Measured, ModelNamed, _Numbered):
    """What `/upload` answers."""

    segmented_img: str = Field(description="Below /segmented/: the slice with the tumour in red.")
    mask_img: str = Field(description="Below /segmented/: the mask; 255 is tumour, 0 is not.")
    uploaded_img: str = Field(description="Below /uploads/: the slice in grey.")


class UploadFailure(BaseModel):
    """What `/upload` answers with status 200 to a form without a file."""

    error: Literal["No file part", "No selected file"] = Field(
        description="No field `file`, or one without a file's name."
    )


class Failure(_Numbered):
    """What is answered in place of a result, with a status from 400 up."""

    error: str = Field(description="One sentence: what is wrong and what to do.")


class SliceFailure(BaseModel):
    """What `/segment/batch` answers in place of one file's result."""

    error: str = Field(description="One sentence: what is wrong with this file and what to do.")


class BatchAnswer(ModelNamed, _Numbered):
    """What `/segment/batch` answers."""

    results: list[SliceAnswer | SliceFailure] = Field(
        description="One for each file, in the order sent."
    )


class Version(BaseModel):
    """What `/version` answers."""

    bento: str = Field(description="Name and version of the bento, a digest of model and code.")
    model: ModelVersion
    git: str = Field(description="Commit of the code that trained the model.")
    data: str = Field(description="MD5 by which DVC knows the data that it was trained on.")
