"""A client of the service: what a program sends it, and what it gets back, typed."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from tumorseg.inference.answers import BatchAnswer, SegmentAnswer, Version

API_KEY_HEADER = "X-API-Key"
_ATTEMPTS = 5
_LONGEST_WAIT = 30.0  # seconds, whatever the service asks for
_NO_RETRY_AFTER = 1.0


class ServiceError(Exception):
    """The service refused, failed or did not answer.

    Attributes:
        sentence: What is wrong and what to do; the service's own words where it answered.
        status: The HTTP status; None where no answer came.
        request_id: Finds the request in the service's log; None where no answer named one.
    """

    def __init__(
        self, sentence: str, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(f"{sentence} (request {request_id})" if request_id else sentence)
        self.sentence = sentence
        self.status = status
        self.request_id = request_id


@dataclass(frozen=True)
class Volume:
    """The mask of a volume, on the volume's own grid.

    Attributes:
        data: A DICOM SEG file or a gzipped NIfTI file.
        media_type: `application/dicom` or `application/gzip`.
        volume_mm3: Volume of the tumour; None where the spacing is not known.
        warnings: What about the volume is unlike the training data, a sentence each.
        model_version: Version of the model in its registry.
        model_digest: SHA-256 of the model file.
        request_id: Finds the request in the service's log.
    """

    data: bytes = field(repr=False)
    media_type: str
    volume_mm3: float | None
    warnings: list[str]
    model_version: str
    model_digest: str
    request_id: str | None


Answer = TypeVar("Answer", bound=BaseModel)


class Client:
    """Talks to one running service; safe to share between threads.

    An answer 503 is asked for again, up to five times, after the time that its Retry-After names.

    Args:
        url: Where the service answers, such as `http://127.0.0.1:3000`.
        api_key: The key, where the service has one set.
        timeout: Seconds until an answer must have come.
        transport: How requests are sent; tests give their own.
        sleep: How waiting is done; tests give their own.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url
        self._sleep = sleep
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={API_KEY_HEADER: api_key} if api_key else None,
                timeout=timeout,
                transport=transport,
                trust_env=False,  # scans go where they were told to, through nobody's proxy
            )
        except httpx.InvalidURL:
            raise ServiceError(f"{url}: is no address; write http://HOST:PORT.") from None

    def __enter__(self) -> "Client":
        """Keeps connections open until the context ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connections."""
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def segment(self, data: bytes, *, probability: bool = False) -> SegmentAnswer:
        """Finds the tumour in one slice.

        Args:
            data: A JPEG, PNG or single-slice DICOM file.
            probability: Whether the answer shall carry `probability_png`.

        Raises:
            ServiceError: The service refused it or did not answer.
        """
        form = {"probability": "true"} if probability else None
        # The name says nothing: a file's own name may be a patient's.
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
        headers = answer.headers
        try:
            size = headers.get("X-Tumour-Volume-mm3")
            return Volume(
                data=answer.content,
                media_type=headers.get("Content-Type", "").partition(";")[0].strip(),
                volume_mm3=float(size) if size else None,
                warnings=TypeAdapter(list[str]).validate_json(headers.get("X-Warnings", "[]")),
                model_version=headers["X-Model-Version"],
                model_digest=headers["X-Model-Digest"],
                request_id=headers.get("X-Request-ID"),
            )
        except (KeyError, ValueError):
            raise _foreign(answer) from None

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
            except httpx.TimeoutException:
                seconds = self._http.timeout.read
                raise ServiceError(
                    f"{self._url} did not answer within {seconds:g} s: try again later, or allow "
                    "more time."
                ) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ServiceError(
                    f"{self._url} cannot be reached ({error}): check the address, and that the "
                    "service runs (`tumorseg serve`)."
                ) from None
            if answer.status_code != 503 or attempt == _ATTEMPTS - 1:
                break
            self._sleep(retry_after(answer))
        if not answer.is_success:
            raise _refused(answer)
        return answer


def retry_after(answer: httpx.Response) -> float:
    """Seconds that an answer asks to wait by Retry-After, at most 30; 1 without a number."""
    seconds = answer.headers.get("Retry-After", "")
    return min(float(seconds), _LONGEST_WAIT) if seconds.isdecimal() else _NO_RETRY_AFTER


def _parsed(answer: httpx.Response, kind: type[Answer]) -> Answer:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError:
        raise _foreign(answer) from None


def _refused(answer: httpx.Response) -> ServiceError:
    """The service's own sentence, or one of ours where something else answered."""
    status, known = answer.status_code, answer.headers.get("X-Request-ID")
    try:
        body = json.loads(answer.content)
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), str):
        return ServiceError(body["error"], status, body.get("request_id") or known)
    return ServiceError(f"{answer.url} answered {status} without a reason.", status, known)


def _foreign(answer: httpx.Response) -> ServiceError:
    return ServiceError(
        f"{answer.url} answered something else than this service does: check the address.",
        answer.status_code,
        answer.headers.get("X-Request-ID"),
    )
