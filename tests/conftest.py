"""Fixtures that several tests share. Every test runs in an environment of its own."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tumorseg.core import environment

# Tests import from them besides their fixtures.
pytest.register_assert_rewrite("tests.support.inboxes", "tests.support.archives")

# The same examples each time: a search for new ones belongs on a desk, not in front of a merge.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

# Before any test imports Prefect or MLflow: they read these when they are imported.
for name, value in environment.SILENT.items():
    os.environ[name] = value
for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "BENTOML_HOME", "PREFECT_HOME"):
    os.environ.pop(name, None)
os.environ["MPLBACKEND"] = "Agg"
# The networks here are tiny; threads that wait for each other cost more than they compute.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs, but from `pytest -m gpu`: what is tested is the same on every machine."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect, MLflow and BentoML keep their state in a temporary folder."""
    folder = tmp_path_factory.mktemp("state")
    (folder / environment.STATE).mkdir()
    for key, value in environment.defaults(folder).items():
        os.environ[key] = value
    return folder


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom set: 12 train, 5 valid and 5 test slices of 96²."""
    from tumorseg.data.phantom import make_phantom

    folder = tmp_path_factory.mktemp("phantom") / "data"
    make_phantom(folder, counts={"train": 12, "valid": 5, "test": 5}, size=96)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real data set of boxes, where it is at hand."""
    root = Path(os.environ.get("TUMORSEG_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    folder = root / "brain-tumor-boxes"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing; set TUMORSEG_REAL_DATA to its parent")
    return folder


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory):
    """The address of a Prefect server for all tests that run flows."""
    from tumorseg.core.prefect_server import free_port
    from tumorseg.core.processes import background

    url = f"http://127.0.0.1:{(port := free_port(0))}/api"
    log = tmp_path_factory.mktemp("prefect") / "server.log"
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with background(command, log):
        deadline = time.monotonic() + 120
        while not environment.answers(f"{url}/health"):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield url


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, whose making takes longer than most tests that need them."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def own_store(tmp_path, monkeypatch, empty_store) -> Iterator[None]:
    """An MLflow of this test alone, in the folder that it now works in."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield
    mlflow.set_tracking_uri(None)


class CocoFolder:
    """Builds a data set by hand: `add` images with annotations, then `write`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.documents = {
            split: {"categories": [{"id": 1, "name": "tumour"}], "images": [], "annotations": []}
            for split in ("train", "valid", "test")
        }
        for split in self.documents:
            (root / split).mkdir(parents=True)

    def add(self, split: str, name: str, annotations=(), size=(80, 64), pixels=None) -> int:
        """Writes an image of (width, height) and lists it; annotations are COCO dicts or boxes."""
        document = self.documents[split]
        number = len(document["images"])
        if pixels is None:
            seed = sum(map(ord, split + name))
            pixels = np.random.default_rng(seed).integers(0, 255, size[::-1], np.uint8)
        Image.fromarray(pixels).save(self.root / split / name)
        document["images"].append(
            {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        )
        for annotation in annotations:
            if not isinstance(annotation, dict):
                x, y, w, h = annotation
                annotation = {
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "bbox": [x, y, w, h],
                }
            document["annotations"].append(
                {"id": len(document["annotations"]), "image_id": number, "category_id": 1}
                | annotation
            )
        return number

    def write(self) -> Path:
        """Writes the JSON files and returns the root."""
        for split, document in self.documents.items():
            (self.root / split / "_annotations.coco.json").write_text(json.dumps(document))
        return self.root


@pytest.fixture
def coco_folder(tmp_path: Path) -> CocoFolder:
    """An empty data set with one plain image in each split but train."""
    folder = CocoFolder(tmp_path / "data")
    folder.add("valid", "v.png", [(10, 10, 20, 20)])
    folder.add("test", "t.png", [(5, 5, 20, 20)])
    return folder


TINY_TRAIN = {
    "seeds": [0],
    "encoder_weights": None,
    "common": {
        "epochs": 2,
        "batch_size": 4,
        "micro_batch_size": 8,
        "learning_rate": 0.01,
        "encoder_rate": 0.3,
        "weight_decay": 0.01,
        "schedule": "plateau",
        "warm_up": 0.2,
        "plateau_factor": 0.5,
        "plateau_patience": 1,
        "minimum_learning_rate": 1e-6,
        "weight_averaging": 0.0,
        "bce_weight": 1.0,
        "dice_weight": 1.0,
        "dice_over": "batch",
        "best_epoch": "loss",
        "early_stopping_patience": 5,
        "workers": 0,
        "devices": 1,
        "nodes": 1,
        "precision": "32-true",
        "compile": False,
        "deterministic": True,
    },
    "unet": {
        "encoder": "plain",
        "channels": [4, 8, 16],
        "norm": "batch",
        "space_to_depth": 1,
    },
    "attention_unet": {
        "encoder": "plain",
        "channels": [4, 8, 16],
        "norm": "batch",
        "space_to_depth": 1,
    },
}


@pytest.fixture
def train_params():
    """Small networks, two epochs."""
    from tumorseg.core.params import TrainParams

    return TrainParams.model_validate(TINY_TRAIN)


@pytest.fixture(scope="session")
def workplace(phantom, tmp_path_factory) -> dict:
    """The phantom's manifest, arrays and policy, as validate and augment leave them."""
    from tumorseg.core.params import AugmentParams, ValidateParams, load_params
    from tumorseg.data.arrays import build_arrays, load_slices
    from tumorseg.data.leakage import find_pairs
    from tumorseg.data.manifest import build_manifest
    from tumorseg.data.splits import official
    from tumorseg.training.augmentation import load_policy, save_policy

    folder = tmp_path_factory.mktemp("work")
    section = load_params(ValidateParams, REPOSITORY / "params.yaml")
    manifest = build_manifest(phantom, section, folder / "small.npy")
    pairs = find_pairs(manifest, folder / "small.npy", section.near_duplicate)
    manifest = official(manifest, pairs, shortest=2, longest=4)
    build_arrays(manifest, phantom, 64, folder / "arrays")
    save_policy(load_params(AugmentParams, REPOSITORY / "params.yaml"), folder / "policy.json")
    return {
        "manifest": manifest,
        "thumbnails": np.load(folder / "small.npy"),
        "slices": {s: load_slices(s, folder / "arrays") for s in ("train", "valid", "test")},
        "policy": load_policy(folder / "policy.json"),
        "folder": folder,
    }


def fit(workplace: dict, name: str, params, folder, seed: int = 0) -> dict:
    """Trains one network on the workplace's slices."""
    from tumorseg.training.trainer import train

    return train(
        name, seed, params, workplace["slices"], workplace["policy"], folder, folder / "unfinished"
    )
