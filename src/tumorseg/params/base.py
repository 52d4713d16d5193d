"""What every section of params.yaml has in common."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Field(ge=0, le=1)


class Section(BaseModel):
    """A section of params.yaml; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    section: ClassVar[str]
