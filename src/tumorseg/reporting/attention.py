"""What the gates of an Attention U-Net let through: their coefficients α, taken while it runs."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tumorseg.core.errors import InputError
from tumorseg.imaging.preprocess import to_input
from tumorseg.training.networks import AttentionGate, UNet


@torch.inference_mode()
def attention_maps(network: UNet, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """The attention coefficients α of each gate (Oktay et al. 2018).

    Args:
        network: In evaluation mode; it is left as it was.
        images: Grey slices on the network's grid, uint8, shape (N, S, S).

    Returns:
        A map a gate, from the coarsest to the finest: float32 in (0, 1), shape (N, H, W). With n
        levels and a stem, H and W are S / (stem · 2ⁿ⁻²) for the first gate and S / stem for the
        last.

    Raises:
        InputError: The network has no attention gate.
    """
    gates = [gate for gate in network.gates if isinstance(gate, AttentionGate)]
    if not gates:
        raise InputError("the network has no attention gates: only an Attention U-Net has maps")
    logits: dict[int, Tensor] = {}

    def keep(number: int, _: nn.Module, __: Any, output: Tensor) -> None:
        logits[number] = output

    # On ψ, whose output the gate passes through the sigmoid and through nothing else.
    hooks = [
        gate.attention.register_forward_hook(partial(keep, number))
        for number, gate in enumerate(gates)
    ]
    try:
        batch = np.stack([to_input(image) for image in images])
        network(torch.from_numpy(batch).to(next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.sigmoid(logits[n])[:, 0].float().cpu().numpy() for n in range(len(gates))]
