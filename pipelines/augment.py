"""augment: manifest → arrays, and the augmentation policy that training applies to them."""

from pathlib import Path

from pipelines._flow import command, stage, step
from pipelines._paths import POLICY, REPORTS
from tumorseg.core.params import AugmentParams, load_params
from tumorseg.data.arrays import build_arrays, load_slices
from tumorseg.data.manifest import load_manifest
from tumorseg.reporting.figures import augmentation_gallery
from tumorseg.training.augmentation import load_policy, save_policy


@stage(name="augment")
def augment() -> None:
    """Writes grey, resized slices and masks as memory-mapped arrays, the policy, and a preview."""
    params = load_params(AugmentParams)
    step(build_arrays)(load_manifest(), Path("data"), params.image_size)
    save_policy(params, POLICY)
    slices = load_slices("train")
    step(augmentation_gallery)(slices, load_policy(POLICY), REPORTS / "augmentation.png")
    print(f"{slices.images.shape} train slices; preview: reports/augmentation.png")


if __name__ == "__main__":
    command(augment)
