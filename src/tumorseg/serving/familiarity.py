"""Whether a slice looks like the slices that the model was trained on."""

from typing import Any

from tumorseg.preprocess import Grey


class Familiarity:
    """What training slices look like, and where that ends.

    Args:
        known: The key `inputs` of model.json, from `describe`.
    """

    def __init__(self, known: dict[str, Any]) -> None:
        self.known = known

    def warnings(self, grey: Grey, colour: float) -> list[str]:
        """Says, a sentence each, what about a slice is unlike the training data.

        Args:
            grey: uint8, shape (H, W).
            colour: `Study.colour`.
        """
        return []
