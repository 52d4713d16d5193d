"""From weights to ONNX: the file that is registered, packaged and served."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from tumorseg.core.files import atomic_path
from tumorseg.imaging.preprocess import to_input
from tumorseg.training.networks import Probabilities

logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision's operators


def export_onnx(network: nn.Module, image_size: int, path: Path) -> None:
    """Writes a network as one ONNX file: `image` in, `probability` out, any batch size.

    Args:
        network: In evaluation mode, on the CPU.
        image_size: The side S of its grid, in pixels.
        path: The file. It holds no paths or lines of code, so that equal networks have equal
            digests.
    """
    program = torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 1, image_size, image_size),),
        input_names=["image"],
        output_names=["probability"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    with atomic_path(path) as temporary:
        model = program.model_proto
        for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
            del part.metadata_props[:]  # paths and lines of code
        onnx.save(model, temporary)
        onnx.checker.check_model(temporary, full_check=True)


def parity(network: Probabilities, path: Path, images: NDArray[np.uint8]) -> float:
    """The largest difference of a probability between ONNX Runtime and PyTorch.

    Args:
        network: What was exported.
        path: The ONNX file.
        images: Grey slices, uint8, shape (N, S, S).
    """
    batch = np.stack([to_input(image) for image in images])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (ours,) = session.run(["probability"], {"image": batch})
    with torch.inference_mode():
        theirs = network(torch.from_numpy(batch)).numpy()
    return float(np.abs(ours - theirs).max())
