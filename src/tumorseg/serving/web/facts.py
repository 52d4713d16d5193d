"""What the page tells about the model: which it is, how well it did, and on what."""

from typing import Any

from tumorseg.inference.predictor import ModelInfo

_TITLES = {"unet": "U-Net", "attention_unet": "Attention U-Net"}


def title(info: ModelInfo) -> str:
    """Names the network as people write it."""
    return _TITLES.get(info.architecture, info.architecture)


def facts(info: ModelInfo) -> list[tuple[str, str]]:
    """Lists what identifies the model, as (name, value)."""
    return [
        ("Network", title(info)),
        ("Version", info.version),
        ("Sees", f"one slice at a time, at {info.image_size} × {info.image_size} pixels"),
        ("Threshold", f"{info.threshold:.2f}"),
        ("Weights", info.digest[:12]),
        ("Training data", info.data_md5[:12]),
        ("Code", info.git_sha[:12]),
    ]


def limits(info: ModelInfo) -> list[str]:
    """Says in sentences how well the model did on slices that it was not trained on.

    Only what `model.json` knows is said; older models know less.
    """
    sentences = []
    for figures, split in ((info.test, "test"), (info.validation, "validation")):
        if (dice := _number(figures, "mean_dice")) is None:
            continue
        slices = _number(figures, "slices")
        on = f"{slices:.0f} {split} slices" if slices else f"the {split} split"
        sentences.append(f"Mean Dice {dice:.2f}{_interval(figures)} on {on}.")
        if split == "test":
            sentences += _beside(figures)
    return sentences or ["How well this model does was not recorded with it."]


def _beside(figures: dict[str, Any]) -> list[str]:
    """What the test's mean Dice has to be read with."""
    sentences = []
    if (copy := _number(figures, "copy_mean_dice")) is not None:
        sentences.append(
            "Copying the mask of the most similar training slice, which takes no network, scores "
            f"{copy:.2f} there."
        )
    found, right = (_number(figures, f"lesion_{k}") for k in ("sensitivity", "precision"))
    if found is not None and right is not None:
        sentences.append(
            f"There it marked {found:.0%} of the tumours; {right:.0%} of the regions that it "
            "marked were tumours."
        )
    return sentences


def _interval(figures: dict[str, Any]) -> str:
    low, high = (_number(figures, f"mean_dice_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f" (95% interval {low:.2f} to {high:.2f})"


def _number(figures: dict[str, Any], key: str) -> float | None:
    value = figures.get(key)
    return float(value) if isinstance(value, int | float) else None
