"""Toy models in a real MLflow, and test slices on which some of them do well."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from tests.support.serving_model import write_model
from tumorseg.core.params import PackageParams, PromoteParams, RegisterParams, load_params
from tumorseg.data.coco import encode
from tumorseg.data.splits import fingerprint
from tumorseg.registry import runs, versions

REPOSITORY = Path(__file__).parents[2]
# Gain and threshold of networks whose mean Dice on the slices below is 0.57, 0.92 and 0.96.
POOR, MIDDLING, GOOD = (3.0, 0.99999), (5.0, 0.9999), (4.0, 0.9)


def write_repository(root: Path) -> None:
    """What `tumorseg` needs of a repository to promote, package and serve, and 12 test slices."""
    for name in ("dvc.yaml", "requirements.lock", "params.yaml"):
        (root / name).write_text((REPOSITORY / name).read_text())
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["promote"] |= {"bootstrap_samples": 200, "min_stratum_slices": 4}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "data" / "test").mkdir(parents=True)
    (root / "reports").mkdir()
    rows = slices(root / "data")
    (root / "artifacts" / "split").mkdir(parents=True)
    rows.to_parquet(root / "artifacts" / "split" / "manifest.parquet")


def slices(data: Path) -> pd.DataFrame:
    """Writes pictures of discs of three sizes; returns the manifest's rows of them."""
    found = []
    for number in range(12):
        radius = (6, 12, 20)[number % 3]
        rows, columns = np.mgrid[:96, :80]
        truth = (rows - 48) ** 2 + (columns - 30 - number) ** 2 < radius**2
        noise = np.random.default_rng(number).integers(0, 30, truth.shape)
        path = f"test/{number}.png"
        Image.fromarray(np.where(truth, 220, noise).astype(np.uint8)).save(data / path)
        sha = hashlib.sha256((data / path).read_bytes()).hexdigest()
        entry = {"path": path, "split": "test", "sha256": sha, "mask_rle": encode(truth)}
        found.append(entry | {"height": 96, "width": 80, "group": None, "split_group": number})
    return pd.DataFrame(found)


def params(root: Path) -> tuple[RegisterParams, PromoteParams, PackageParams]:
    path = root / "params.yaml"
    kinds = (RegisterParams, PromoteParams, PackageParams)
    target, promote, package = (load_params(kind, path) for kind in kinds)
    assert isinstance(target, RegisterParams) and isinstance(promote, PromoteParams)
    assert isinstance(package, PackageParams)
    return target, promote, package


def register(
    root: Path, target: RegisterParams, model: tuple[float, float], **changes: Any
) -> dict[str, Any]:
    """Registers a toy network under a run of its own; returns what candidate.json would hold."""
    run = runs.connect().create_run(runs.experiment_id(target.experiment))
    about = {"run_id": run.info.run_id, "threshold": model[1], "test": {"mean_dice": 0.5}}
    about["test_set"] = fingerprint(pd.read_parquet(root / "artifacts/split/manifest.parquet"))
    folder = write_model(root / "model", model[0], **about | changes)
    versions.register(folder, target.model_name)
    info = json.loads((folder / "model.json").read_text())
    return {key: info[key] for key in ("version", "run_id", "digest", "architecture")}
