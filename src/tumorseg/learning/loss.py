"""The loss of both networks: binary cross-entropy plus soft Dice."""

import torch
from torch import Tensor
from torch.nn import functional


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice of the whole batch (Milletari et al. 2016, with plain sums below).

    Pooling over the batch keeps slices without tumour from dominating it.

    Args:
        logits: float, shape (B, 1, H, W).
        target: 0 or 1, same shape.
        smooth: Added above and below, so that an empty batch has a defined value.

    Returns:
        A scalar in [0, 1).
    """
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum()
    return 1 - (2 * overlap + smooth) / (probability.sum() + target.sum() + smooth)


def bce_dice_loss(
    logits: Tensor, target: Tensor, bce_weight: float = 1.0, dice_weight: float = 1.0
) -> Tensor:
    """Weighted sum of binary cross-entropy (mean over pixels) and `dice_loss`."""
    bce = functional.binary_cross_entropy_with_logits(logits, target)
    return bce_weight * bce + dice_weight * dice_loss(logits, target)
