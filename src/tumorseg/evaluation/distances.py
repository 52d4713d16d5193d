"""How far a predicted border lies from the true one: what Dice cannot tell."""

import math

import numpy as np
from scipy import ndimage

from tumorseg.imaging.preprocess import Mask


def distances(
    prediction: Mask, truth: Mask, spacing: tuple[float, float] | None, tolerance: float
) -> dict[str, float]:
    """Distance between two borders, and the share of them that is close enough, both by MONAI.

    A border is the mask's own pixels that have one of their four neighbours outside it; outside
    the picture is outside the mask.

    Args:
        prediction: bool, shape (H, W).
        truth: bool, shape (H, W).
        spacing: Height and width of a pixel in mm; None measures in pixels.
        tolerance: How far a border may be off for the surface Dice, in mm or in pixels, inclusive.

    Returns:
        hd95: 95th percentile of the distances from each border to the other, the larger of the
            two directions (Hausdorff distance without its outliers), in mm or in pixels.
        surface_dice: Share of both borders within the tolerance, in [0, 1] (Nikolov et al. 2021,
            doi:10.2196/26151; border lengths counted in pixels, as in Seidlitz et al. 2022,
            arXiv:2111.05408).
        Where both masks are empty both are NaN. Where one is, hd95 is NaN, since there is no
        distance to nothing, and surface_dice is 0, since no border is near the other.
    """
    # MONAI loads all of itself, which takes seconds that only the evaluation should pay.
    from monai.metrics import get_mask_edges, get_surface_distance

    if not (prediction.any() and truth.any()):
        either = prediction.any() or truth.any()
        return {"hd95": math.nan, "surface_dice": 0.0 if either else math.nan}
    # Cut to the pixels that matter: to search a whole picture takes several times as long.
    (around,) = ndimage.find_objects((prediction | truth).astype(np.uint8))
    # The two steps of MONAI's compute_hausdorff_distance and compute_surface_dice, taken once for
    # both; its own cropping takes longer than everything else.
    edges = get_mask_edges(prediction[around], truth[around], crop=False)
    there, back = (get_surface_distance(*pair, spacing=spacing) for pair in (edges, edges[::-1]))
    both = np.concatenate([there, back])
    return {
        "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        # As MONAI compares: in float32, so that the last bits of a spacing do not decide.
        "surface_dice": float(np.mean(both <= np.float32(tolerance))),
    }
