"""A model folder that is quick to write and whose answers are easy to foresee."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
from numpy.typing import NDArray
from PIL import Image

SIZE = 64


def write_model(folder: Path, gain: float = 4.0, **changes: Any) -> Path:
    """Writes `model.onnx`, the sigmoid of `gain` times the input, and a matching `model.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = f"float[batch,1,{SIZE},{SIZE}]"
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 17]>
        tiny ({shape} image) => ({shape} probability) <float gain = {{{gain}}}> {{
          scaled = Mul(image, gain)
          probability = Sigmoid(scaled)
        }}"""
    )
    onnx.save(model, folder / "model.onnx")
    info = {
        "name": "tumorseg",
        "version": "3",
        "run_id": "0123456789abcdef",
        "digest": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest(),
        "architecture": "unet",
        "image_size": SIZE,
        "threshold": 0.5,
        "data_md5": "d41d8cd98f00b204e9800998ecf8427e",
        "git_sha": "0" * 40,
        "validation": {"dice_micro": 0.7},
        "test": {"dice_micro": 0.7},
    }
    (folder / "model.json").write_text(json.dumps(info | changes))
    return folder


def disc(height: int = 120, width: int = 90) -> NDArray[np.uint8]:
    """Draws a bright disc of radius 20 on noisy dark ground, uint8, shape (H, W)."""
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height // 2) ** 2 + (columns - width // 3) ** 2 < 20**2
    noise = np.random.default_rng(0).integers(0, 30, (height, width))
    return np.where(inside, 220, noise).astype(np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
