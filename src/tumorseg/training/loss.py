"""The loss of both networks: binary cross-entropy plus soft Dice."""

import torch
from torch import Tensor
from torch.nn import functional


def dice_loss(logits: Tensor, target: Tensor, over: str = "slice") -> Tensor:
    """One minus the soft Dice (Milletari et al. 2016, with plain sums below, plus 1 in both terms).

    Args:
        logits: float, shape (B, 1, H, W).
        target: 0 or 1, same shape.
        over: `batch` pools all pixels; `slice` averages the losses of the slices.

    Returns:
        A scalar in [0, 1).
    """
    axes = (0, 1, 2, 3) if over == "batch" else (1, 2, 3)
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum(axes)
    total = probability.sum(axes) + target.sum(axes)
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def bce_dice_loss(
    logits: Tensor,
    target: Tensor,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    dice_over: str = "slice",
) -> Tensor:
    """Weighted sum of binary cross-entropy (mean over pixels) and `dice_loss`."""
    bce = functional.binary_cross_entropy_with_logits(logits, target)
    return bce_weight * bce + dice_weight * dice_loss(logits, target, dice_over)
