"""The packaged model, run by ONNX Runtime."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from joblib import cpu_count
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import Grey, Mask, to_grid, to_input, to_native
from tumorseg.imaging.render import outlines

BATCH = 8  # slices a run of the network
_MOST_ZOOMED = 1024**2  # pixels of a mask that is traced at a multiple of its size


class ModelInfo(BaseModel):
    """The content of `model.json`, which describes the `model.onnx` beside it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    run_id: str
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of model.onnx, hexadecimal")
    architecture: str
    image_size: int = Field(gt=0, description="Side of the network's input, in pixels")
    threshold: float = Field(ge=0, le=1, description="Probability from which a pixel is tumour")
    data_md5: str
    git_sha: str
    validation: dict[str, Any]
    test: dict[str, Any]
    inputs: dict[str, Any] | None = Field(
        default=None, description="What training slices look like; models before had no such key"
    )


@dataclass(frozen=True)
class Segmentation:
    """The tumour found in one picture."""

    mask: Mask  # bool, shape (H, W), at the picture's own size
    area_px: int  # of the mask, in pixels of the picture
    area_fraction: float  # the mask's share of the picture, in [0, 1]
    contours: list[list[list[float]]]  # polygons [[x, y], …] in pixels from the upper left corner
    confidence: float | None  # mean probability inside the mask; None if it is empty
    probability: NDArray[np.float32]  # of tumour, on the network's grid, shape (S, S)


def load_info(folder: Path) -> ModelInfo:
    """Reads a model folder's `model.json`.

    Raises:
        InputError: If it is missing, is not JSON or lacks a key.
    """
    path = folder / "model.json"
    try:
        return ModelInfo.model_validate_json(path.read_bytes())
    except OSError:
        raise InputError(f"{path} cannot be read: name the folder of a packaged model.") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole file"
        raise InputError(
            f"{path} is broken at {key}: {first['msg']}. Package the model again."
        ) from None


def read_model(folder: Path) -> tuple[ModelInfo, bytes]:
    """Reads a model folder and checks that the two files belong together.

    Returns:
        The content of `model.json`, and the bytes of `model.onnx`.

    Raises:
        InputError: If a file is missing or broken, or the digest is another one.
    """
    info = load_info(folder)
    path = folder / "model.onnx"
    try:
        data = path.read_bytes()
    except OSError:
        raise InputError(f"{path} cannot be read: package the model again.") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != info.digest:
        raise InputError(
            f"{path} has the digest {digest}, but model.json names {info.digest}: package the "
            "model again."
        )
    return info, data


class Predictor:
    """A checked and warmed-up model; safe to share between threads.

    Args:
        folder: The folder that holds `model.onnx` and `model.json`.
        threads: That run the network; as many as there are cores for it if 0.

    Attributes:
        info: The content of `model.json`.

    Raises:
        InputError: If the folder does not hold a whole, matching and working model.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.info, data = read_model(folder)
        self._turn = threading.Lock()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cpu_count()
        # Threads that wait by spinning take the cores from decoding and encoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
            # The first run is slow, since it allocates memory.
            self.segment(np.zeros((self.info.image_size,) * 2, np.uint8))
        except Exception as error:
            raise InputError(f"{folder / 'model.onnx'} does not run: {error}") from error

    def prepare(self, grey: Grey) -> NDArray[np.float32]:
        """The network's input for one slice: uint8, shape (H, W), to float32, shape (1, S, S)."""
        return to_input(to_grid(grey, self.info.image_size))

    def probabilities(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs the network.

        Args:
            inputs: float32, shape (N, 1, S, S), each from `prepare`.

        Returns:
            Probability of tumour, float32 in [0, 1], shape (N, S, S).
        """
        # One run uses every core already; taking turns bounds the memory.
        with self._turn:
            (output,) = self._session.run(["probability"], {"image": inputs})
        return output[:, 0]

    def finish(
        self,
        probability: NDArray[np.float32],
        shape: tuple[int, int],
        threshold: float | None = None,
    ) -> Segmentation:
        """Brings one slice's probabilities to its own size and measures the tumour there.

        Args:
            probability: float32, shape (S, S), from `probabilities`.
            shape: The slice's (H, W), in pixels.
            threshold: Probability from which a pixel is tumour; the model's own if None.
        """
        native = to_native(probability, shape)
        mask = native >= (self.info.threshold if threshold is None else threshold)
        area = int(np.count_nonzero(mask))
        # The box around the tumour is faster to work on than the whole picture.
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        box = slice(top, top + height), slice(left, left + width)
        # Without zoom the line is half a pixel off, which is invisible on a large tumour.
        flat = outlines(mask[box], zoom=4 if width * height <= _MOST_ZOOMED else 1) if area else []
        corner = np.array([left, top])
        return Segmentation(
            mask=mask,
            area_px=area,
            area_fraction=area / mask.size,
            contours=[(np.reshape(one, (-1, 2)) + corner).round(2).tolist() for one in flat],
            confidence=float(native[box][mask[box]].mean()) if area else None,
            probability=probability,
        )

    def segment_many(
        self, greys: Sequence[Grey], threshold: float | None = None
    ) -> list[Segmentation]:
        """Finds the tumour in each slice, uint8, shape (H, W); in batches, so that memory holds."""
        found = []
        for start in range(0, len(greys), BATCH):
            some = greys[start : start + BATCH]
            answers = self.probabilities(np.stack([self.prepare(grey) for grey in some]))
            for grey, probability in zip(some, answers, strict=True):
                found.append(self.finish(probability, grey.shape[:2], threshold))
        return found

    def segment(self, grey: Grey, threshold: float | None = None) -> Segmentation:
        """Finds the tumour in one slice, uint8, shape (H, W)."""
        return self.segment_many([grey], threshold)[0]
