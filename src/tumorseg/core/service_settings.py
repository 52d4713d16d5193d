"""The limits of the service: `service.json` in the bento, from section `package` of params.yaml."""

from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
)

from tumorseg.core.errors import InputError

# As browsers write them; `*` is none, since it would let every site read scans.
Origin = Annotated[str, StringConstraints(pattern=r"^https?://[^/\s*A-Z]+$")]
Host = Annotated[str, StringConstraints(pattern=r"^[^/:\s*A-Z]+$")]


class Settings(BaseModel):
    """How much the service takes on; the defaults hold where it runs outside a bento."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_batch_size: PositiveInt = 8  # slices a run of the network
    max_latency_ms: PositiveInt = 60_000  # a slice that would wait longer is refused with 503
    max_queue: PositiveInt = 128  # requests that are read, waiting or computed at a time
    max_memory_mib: PositiveInt = 640  # request bodies held at a time, all together
    page_memory_mib: PositiveInt = 512  # that the page's pictures may hold, for ten minutes
    max_volumes: PositiveInt = 2  # unpacked at a time, others wait; as many of the page
    timeout_seconds: PositiveFloat = 120  # from a request's first byte to its answer's last
    threads: PositiveInt = 4  # that decode, resize and encode; as many again serve the pages
    onnx_threads: NonNegativeInt = 0  # that run the network; 0: as many as there are cores for it
    statistics_rows: NonNegativeInt = 20_000  # slices whose statistics are kept; 0: of none
    cors_origins: list[Origin] = Field(default=[])  # whose pages may call, with the cookie; none
    hosts: list[Host] = Field(default=[])  # names besides localhost to answer under without a key


def load_settings(path: Path) -> Settings:
    """Reads `service.json`; the defaults where there is none.

    Raises:
        InputError: If it is no JSON, or a key is unknown or wrong.
    """
    if not path.exists():
        return Settings()
    try:
        return Settings.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged ({reason}). Package the model again.") from None
