"""Small repositories to retrain in, and batches of new data for their inboxes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import REPOSITORY, TINY_TRAIN
from tumorseg.core import environment
from tumorseg.core.params import RetrainParams, SplitParams, ValidateParams, load_params
from tumorseg.data import coco
from tumorseg.data.phantom import make_phantom

# What stage promote writes.
DECISION = {
    "decision": "refused",
    "why": "refused, mean Dice 0.4 against 0.5 of the champion",
    "challenger": {"version": "2", "architecture": "unet", "digest": "ab" * 32},
    "champion": {"version": "1", "architecture": "unet", "digest": "cd" * 32},
    "serving": "1",
    "figures": {"challenger_mean_dice": 0.4, "champion_mean_dice": 0.5, "difference": None},
}


def small_params(epochs: int = 12) -> dict:
    """params.yaml for small pictures, tiny networks and no waiting."""
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    common = TINY_TRAIN["common"] | {
        "epochs": epochs,
        "batch_size": 2,
        "early_stopping_patience": 12,
    }
    params["train"] = TINY_TRAIN | {"common": common}
    params["validate"]["min_side"] = 16
    params["evaluate"] |= {"threshold": "validation", "bootstrap_samples": 100}
    params["augment"]["image_size"] = 64
    params["promote"]["bootstrap_samples"] = 100
    params["retrain"] |= {"settle_seconds": 0, "retries": 0, "retry_delay_seconds": 0}
    return params


def sections(root: Path) -> tuple[ValidateParams, SplitParams, RetrainParams]:
    """What a take-in needs of a repository's params.yaml."""
    kinds = (ValidateParams, SplitParams, RetrainParams)
    return tuple(load_params(kind, root / "params.yaml") for kind in kinds)


def git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def variables(root: Path) -> dict[str, str]:
    """The environment of a run in a repository; a Prefect server set before stays."""
    kept = {k: v for k, v in os.environ.items() if k not in environment.defaults(root)}
    kept |= environment.defaults(root)
    kept["PYTHONPATH"] = f"{root / 'src'}:{root}"
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return kept


def copy_repository(root: Path, *, whole: bool = True) -> None:
    """Copies what DVC and git need, and with `whole` sources and stages; runs `git init`."""
    names = [".dvcignore", ".gitignore", ".dvc/config"]
    names += ["dvc.yaml", "requirements.lock", "src", "pipelines"] * whole
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(REPOSITORY / name, root / name, ignore=skip)
        else:
            shutil.copy(REPOSITORY / name, root / name)
    git(root, "init", "-q")


def make_repository(root: Path, data: Path, *, whole: bool = False, epochs: int = 12) -> Path:
    """A git repository with DVC, params.yaml and a committed data version.

    Args:
        root: Is made.
        data: Goes under data/.
        whole: With sources and stages, for a real run.
        epochs: Of each training.
    """
    copy_repository(root, whole=whole)
    (root / environment.STATE).mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(small_params(epochs)))
    shutil.copytree(data, root / "data")
    git(root, "config", "user.name", "Somebody")
    git(root, "config", "user.email", "somebody@example.org")
    subprocess.run(
        [sys.executable, "-m", "dvc", "add", "-q", "data"],
        cwd=root,
        env=variables(root),
        check=True,
    )
    git(root, "add", "--all")
    git(root, "commit", "-q", "-m", "A data version")
    return root


def phantom_batch(folder: Path, count: int, seed: int, shift: int = 0) -> Path:
    """A batch of phantom slices in one COCO folder, with names of their own.

    Args:
        folder: Is made.
        count: How many slices.
        seed: Other than the data set's.
        shift: Moves the labels by so many pixels to the right, off the tumours.
    """
    scratch = folder.with_name(f".{folder.name}.made")
    make_phantom(scratch, seed=seed, counts={"train": count}, size=96)
    document = json.loads((scratch / "train" / coco.ANNOTATIONS).read_text())
    for image in document["images"]:
        path = scratch / "train" / image["file_name"]
        image["file_name"] = f"new{seed}_{image['file_name']}"
        path.rename(path.with_name(image["file_name"]))
    for annotation in document["annotations"]:
        annotation["segmentation"] = [
            [
                min(value + shift, 96) if place % 2 == 0 else value
                for place, value in enumerate(ring)
            ]
            for ring in annotation["segmentation"]
        ]
    (scratch / "train" / coco.ANNOTATIONS).write_text(json.dumps(document))
    (scratch / "train").rename(folder)
    shutil.rmtree(scratch)
    return folder


def masks(folder: Path) -> dict[str, tuple[bytes, dict[str, str]]]:
    """File name → the file's bytes, and its masks by category, of one split."""
    document = coco.read_document(folder / coco.ANNOTATIONS)
    names = {each["id"]: each["name"] for each in document["categories"]}
    found = {}
    for image in document["images"]:
        own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        size = (image["height"], image["width"])
        drawn = {}
        for annotation in own:
            rle = coco.annotation_rle(annotation, *size)
            drawn.setdefault(names[annotation["category_id"]], []).append(rle["counts"])
        path = folder / image["file_name"]
        found[image["file_name"]] = (path.read_bytes(), {k: sorted(v) for k, v in drawn.items()})
    return found
