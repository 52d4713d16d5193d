"""The registry and its gate against a real MLflow on SQLite."""

from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import onnx
import pytest

from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.inference.predictor import Predictor
from tumorseg.registry import runs, versions
from tumorseg.registry.export import export_onnx
from tumorseg.training.networks import Probabilities, build_network

NAME = EXPERIMENT = "tumorseg"
pytestmark = pytest.mark.usefixtures("own_store")


@pytest.fixture
def candidate(tmp_path, train_params):
    """A model folder of an untrained network, under a run of its own."""
    logger = runs.start_run(EXPERIMENT, "unet", 0, {"train": {"epochs": 2}})
    logger.log_metrics({"val_loss": 0.5}, step=1)
    folder = tmp_path / "candidate"
    network = Probabilities(build_network("unet", train_params.unet), flips=False).eval()
    export_onnx(network, 64, folder / "model.onnx")
    info = {
        "name": NAME,
        "version": "candidate",
        "run_id": logger.run_id,
        "digest": versions.digest_of(folder / "model.onnx"),
        "architecture": "unet",
        "image_size": 64,
        "threshold": 0.5,
        "data_md5": "d",
        "git_sha": "g",
        "validation": {"mean_dice": 0.5},
        "test": {"mean_dice": 0.5},
    }
    write_json(folder / "model.json", info)
    return SimpleNamespace(folder=folder, run_id=logger.run_id, network=network)


def test_a_registered_model_comes_back_with_its_digest(candidate, tmp_path) -> None:
    assert versions.champion(NAME) is None
    assert versions.register(candidate.folder, NAME) == "1"
    assert versions.champion(NAME) is None  # registering does not promote
    versions.set_champion(NAME, "1")
    champion = versions.champion(NAME)
    assert champion is not None and champion.run_id == candidate.run_id

    info = versions.fetch(NAME, champion.version, tmp_path / "fetched")
    assert info["version"] == "1"
    assert info["digest"] == versions.digest_of(tmp_path / "fetched" / "model.onnx")
    predictor = Predictor(tmp_path / "fetched")  # checks the digest itself
    image = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    from tumorseg.training.predict_split import probabilities

    assert np.allclose(
        predictor.segment(image).probability,
        probabilities(candidate.network, image[None])[0],
        atol=1e-5,
    )
    model = mlflow.onnx.load_model(f"models:/{NAME}@champion")  # the way others load it
    assert model.graph.input[0].name == "image"
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1"))
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert ".onnx" in kinds and not kinds & {".pkl", ".pickle", ".pt", ".ckpt"}


def test_a_changed_artifact_is_refused(candidate, tmp_path) -> None:
    versions.register(candidate.folder, NAME)
    (stored,) = (tmp_path / ".state").rglob("model.onnx")
    stored.write_bytes(stored.read_bytes() + b"\0")
    with pytest.raises(InputError, match="tampered with or damaged"):
        versions.fetch(NAME, "1", tmp_path / "fetched")


def test_runs_carry_metrics_tags_and_artifacts(candidate, tmp_path) -> None:
    report = tmp_path / "metrics.json"
    report.write_text("{}")
    runs.complete_run(candidate.run_id, {"test_mean_dice": 0.7}, {"winner": "True"}, [report])
    run = mlflow.get_run(candidate.run_id)
    assert run.data.metrics == {"val_loss": 0.5, "test_mean_dice": 0.7}
    assert run.data.params == {"train/epochs": "2"}
    assert {"git_sha", "data_md5", "lock_digest", "stage", "network", "winner"} <= set(
        run.data.tags
    )
    store = mlflow.MlflowClient()
    assert [a.path for a in store.list_artifacts(candidate.run_id)] == ["metrics.json"]
    assert not (tmp_path / "mlruns").exists()


def test_lineage_names_code_data_and_lock(tmp_path) -> None:
    (tmp_path / "data.dvc").write_text("outs:\n- md5: abc.dir\n  path: data\n")
    (tmp_path / "requirements.lock").write_text("torch==2\n")
    tags = runs.lineage()
    assert tags["data_md5"] == "abc.dir"
    assert len(tags["lock_digest"]) == 64
    assert tags["git_sha"] == "none"  # this folder is no checkout


def test_an_exported_network_holds_no_paths(candidate) -> None:
    model = onnx.load(candidate.folder / "model.onnx")
    for weights in model.graph.initializer:
        weights.ClearField("raw_data")  # random bytes
    written = model.SerializeToString()
    assert b"site-packages" not in written and b".py" not in written


def test_an_incomplete_or_unknown_version_is_named(candidate, tmp_path) -> None:
    versions.register(candidate.folder, NAME)
    for version in ("2", "champion"):
        with pytest.raises(InputError, match=f"no version '{version}': complete are 1"):
            versions.fetch(NAME, version, tmp_path / "fetched")
    runs.connect().delete_model_version_tag(NAME, "1", versions.INFO_TAG)
    with pytest.raises(InputError, match=r"version 1 is incomplete: .*; none is complete"):
        versions.fetch(NAME, "1", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
