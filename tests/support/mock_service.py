"""A stand-in for the service, whose answers a test chooses."""

import base64
from typing import Any

import httpx

from tests.support.serving_model import disc
from tumorseg.imaging.render import mask_png
from tumorseg.inference.client import Client

MODEL = {"model_version": "3", "model_digest": "0" * 64, "architecture": "unet"}
SLICE = {
    "mask_png": base64.b64encode(mask_png(disc() > 99)).decode(),
    "width": 90,
    "height": 120,
    "area_px": 1245,
    "area_mm2": None,
    "area_fraction": 0.115,
    "confidence": 0.9,
    "contours": [[[1.0, 2.0], [3.0, 2.0], [3.0, 4.0]]],
    "warnings": [],
}
ANSWER = SLICE | MODEL | {"request_id": "r1"}
VOLUME_HEADERS = {
    "Content-Type": "application/gzip",
    "X-Request-ID": "r9",
    "X-Model-Version": "3",
    "X-Model-Digest": "0" * 64,
    "X-Warnings": '["odd"]',
}


class Service:
    """Answers in turn, the last answer again and again, and keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        # A response can be read only once.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, **options: Any) -> Client:
        return Client("http://service", transport=httpx.MockTransport(self), **options)
