"""A typed client of the service."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from tumorseg.inference.answers import BatchAnswer, Failure, SegmentAnswer, Version

API_KEY_HEADER = "X-API-Key"
_ATTEMPTS = 5


class ServiceError(Exception):
    """The service refused, failed or did not answer.

    Attributes:
        sentence: What is wrong and what to do; the service's own sentence if it answered.
        status: The HTTP status; None if no answer came.
        request_id: Finds the request in the service's log; None if no answer named one.
    """

    def __init__(
        self, sentence: str, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(f"{sentence} (request {request_id})" if request_id else sentence)
        self.sentence = sentence
        self.status = status
        self.request_id = request_id


class Volume(BaseModel):
    """The mask of a volume, on the volume's own grid; the aliases are headers of the answer."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    data: bytes = Field(repr=False)  # a DICOM SEG file or a gzipped NIfTI file
    media_type: str = Field(alias="content-type")  # `application/dicom` or `application/gzip`
    volume_mm3: float | None = Field(None, alias="x-tumour-volume-mm3")  # if the spacing is known
    warnings: Json[list[str]] = Field(alias="x-warnings")  # what is unlike the training data
    model_version: str = Field(alias="x-model-version")  # in its registry
    model_digest: str = Field(alias="x-model-digest")  # SHA-256 of the model file
    request_id: str | None = Field(None, alias="x-request-id")  # as in the service's log


Answer = TypeVar("Answer", bound=BaseModel)


class Client(AbstractContextManager["Client"]):
    """Talks to one running service; safe to share between threads.

    After an answer 503 it tries again, up to five times, after the time in its Retry-After.

    Args:
        url: Address of the service, such as `http://127.0.0.1:3000`.
        api_key: The key, if the service has one set.
        timeout: Seconds until an answer must have come.
        transport: How requests are sent, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={API_KEY_HEADER: api_key} if api_key else None,
                timeout=timeout,
                transport=transport,
                trust_env=False,  # no proxy may see the scans
            )
        except httpx.InvalidURL:
            raise ServiceError(f"{url}: is no address; write http://HOST:PORT.") from None

    def __exit__(self, *_: object) -> None:
        """Closes the connections."""
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def segment(self, data: bytes, *, probability: bool = False) -> SegmentAnswer:
        """Finds the tumour in one slice.

        Args:
            data: A JPEG, PNG or single-slice DICOM file.
            probability: Whether the answer shall have `probability_png`.

        Raises:
            ServiceError: The service refused it or did not answer.
        """
        form = {"probability": "true"} if probability else None
        # Not the file's own name, which may be a patient's.
        answer = self._send("POST", "/segment", files=[("file", ("slice", data))], data=form)
        return _parsed(answer, SegmentAnswer)

    def segment_batch(self, files: Sequence[bytes]) -> BatchAnswer:
        """Finds the tumour in each of 1 to 64 slices; a bad one gets a `SliceFailure`.

        Raises:
            ServiceError: The service refused all of them or did not answer.
        """
        parts = [("files", (f"slice{n}", data)) for n, data in enumerate(files)]
        return _parsed(self._send("POST", "/segment/batch", files=parts), BatchAnswer)

    def segment_volume(
        self, data: bytes, *, output: Literal["seg", "nifti"] | None = None
    ) -> Volume:
        """Finds the tumour in a zip of a DICOM series, a DICOM file or a NIfTI file.

        Args:
            data: The file.
            output: What to answer, DICOM SEG or NIfTI; as the file is if None.

        Raises:
            ServiceError: The service refused it or did not answer.
        """
        form = {"output": output} if output else None
        files = [("file", ("volume", data))]
        answer = self._send("POST", "/segment/volume", files=files, data=form)
        try:
            return Volume.model_validate({**answer.headers, "data": answer.content})
        except ValidationError:
            raise _unexpected(answer) from None

    def version(self) -> Version:
        """Names the bento, the model, the code and the data that the service runs on.

        Raises:
            ServiceError: The service refused or did not answer.
        """
        return _parsed(self._send("GET", "/version"), Version)

    def _send(self, method: str, path: str, **body: Any) -> httpx.Response:
        for attempt in range(_ATTEMPTS):
            try:
                answer = self._http.request(method, path, **body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ServiceError(
                    f"{self._url} does not answer ({type(error).__name__} {error}): check the "
                    "address, that the service runs (`tumorseg serve`), and the timeout."
                ) from None
            if answer.status_code != 503 or attempt == _ATTEMPTS - 1:
                break
            time.sleep(retry_after(answer))
        if answer.is_success:
            return answer
        try:
            failure = Failure.model_validate_json(answer.content)
        except ValidationError:
            raise _unexpected(answer) from None
        raise ServiceError(failure.error, answer.status_code, failure.request_id)


def retry_after(answer: httpx.Response) -> float:
    """Seconds to wait by an answer's Retry-After, at most 30; 1 without a number."""
    seconds = answer.headers.get("Retry-After", "")
    return min(float(seconds), 30.0) if seconds.isdecimal() else 1.0


def _parsed(answer: httpx.Response, kind: type[Answer]) -> Answer:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError:
        raise _unexpected(answer) from None


def _unexpected(answer: httpx.Response) -> ServiceError:
    return ServiceError(
        f"{answer.url} answered {answer.status_code}, not as this service: check the address.",
        answer.status_code,
        answer.headers.get("X-Request-ID"),
    )
