"""Examples of requests and answers, for the API's description."""

import base64
from typing import Any

import numpy as np

from tumorseg.imaging.render import mask_png
from tumorseg.inference.answers import SegmentAnswer, SliceFailure

Json = dict[str, Any]
_ID = "5f0c1d2e3b4a5968"
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_MODEL: Json = {
    "model_version": "3",
    "model_digest": _DIGEST,
    "architecture": "attention_unet",
    "inputs_known": True,
}
_SLICE: Json = {
    "mask_png": base64.b64encode(mask_png(np.pad(np.ones((4, 4), bool), 6))).decode(),
    "width": 16,
    "height": 16,
    "area_px": 16,
    "area_mm2": None,
    "area_fraction": 0.0625,
    "confidence": 0.93,
    "contours": [[[6.0, 6.0], [10.0, 6.0], [10.0, 10.0], [6.0, 10.0]]],
    "warnings": [],
}
ERROR: Json = {
    "error": "The file is empty: choose a picture and send it again.",
    "request_id": _ID,
}
SEGMENT: Json = SegmentAnswer(**_SLICE, **_MODEL, request_id=_ID).model_dump(
    exclude={"probability_png"}
)
BATCH: Json = {
    "request_id": _ID,
    **_MODEL,
    "results": [_SLICE, SliceFailure(error=ERROR["error"]).model_dump()],
}
UPLOAD: Json = {
    "segmented_img": "Yw3vKX0Qm5sZp8Rb.png",
    "mask_img": "u7DkE2nHc9TfWq4L.png",
    "uploaded_img": "aJ6sVb1GxM3oPz5C.png",
    **{key: _SLICE[key] for key in ("width", "height", "area_px", "area_fraction", "warnings")},
    **_MODEL,
    "request_id": _ID,
}
VERSION: Json = {
    "bento": "tumorseg:k2vd6xqmzgj3",
    "model": {"version": "3", "digest": _DIGEST, "architecture": "attention_unet"},
    "git": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "data": "d41d8cd98f00b204e9800998ecf8427e.dir",
}


def request(path: str, *fields: str) -> Json:
    """A form as curl sends it: JSON cannot hold the bytes of a file, so its name stands there.

    Args:
        path: Where it is sent, such as `/segment`.
        fields: As after curl's `-F`, such as `file=@slice.png`.
    """
    value: Json = {}
    for field in fields:
        name, _, content = field.partition("=")
        if name == "files":
            value.setdefault(name, []).append(content)
        else:
            value[name] = content
    line = " ".join(f"-F {field}" for field in fields)
    return {"summary": f"curl {line} http://127.0.0.1:3000{path}", "value": value}
