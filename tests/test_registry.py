"""The registry and its gate against a real MLflow on SQLite."""

from types import SimpleNamespace

import mlflow
import numpy as np
import pytest

from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.inference.predictor import Predictor
from tumorseg.registry import runs as tracking
from tumorseg.registry import versions as registry
from tumorseg.registry.export import export_onnx
from tumorseg.training.networks import Probabilities, build_network

NAME = EXPERIMENT = "tumorseg"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An MLflow of this test alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture
def candidate(tmp_path, train_params):
    """A model folder of an untrained network, under a run of its own."""
    logger = tracking.start_run(EXPERIMENT, "unet", 0, {"train": {"epochs": 2}})
    logger.log_metrics({"val_loss": 0.5}, step=1)
    folder = tmp_path / "candidate"
    network = Probabilities(build_network("unet", train_params.unet), flips=False).eval()
    export_onnx(network, 64, folder / "model.onnx")
    info = {
        "name": NAME,
        "version": "candidate",
        "run_id": logger.run_id,
        "digest": registry.digest_of(folder / "model.onnx"),
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
    assert registry.champion(NAME, EXPERIMENT) is None
    assert registry.register(candidate.folder, NAME, EXPERIMENT) == "1"
    assert registry.champion(NAME, EXPERIMENT) is None  # registering does not promote
    registry.promote(NAME, "1", EXPERIMENT)
    champion = registry.champion(NAME, EXPERIMENT)
    assert champion is not None and champion.run_id == candidate.run_id

    info = registry.fetch(NAME, champion.version, EXPERIMENT, tmp_path / "fetched")
    assert info["version"] == "1"
    assert info["digest"] == registry.digest_of(tmp_path / "fetched" / "model.onnx")
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


def test_no_pickle_is_registered(candidate, tmp_path) -> None:
    registry.register(candidate.folder, NAME, EXPERIMENT)
    folder = mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(tmp_path / "x"))
    names = {path.name for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert "model.onnx" in names and folder
    assert not {name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".ckpt"))}


def test_a_changed_artifact_is_refused(candidate, tmp_path) -> None:
    registry.register(candidate.folder, NAME, EXPERIMENT)
    (stored,) = (tmp_path / ".state").rglob("model.onnx")
    stored.write_bytes(stored.read_bytes() + b"\0")
    with pytest.raises(InputError, match="tampered with or damaged"):
        registry.fetch(NAME, "1", EXPERIMENT, tmp_path / "fetched")


def test_runs_carry_metrics_tags_and_artifacts(candidate, tmp_path) -> None:
    report = tmp_path / "metrics.json"
    report.write_text("{}")
    tracking.complete_run(
        EXPERIMENT, candidate.run_id, {"test_mean_dice": 0.7}, {"winner": "True"}, [report]
    )
    run = mlflow.get_run(candidate.run_id)
    assert run.data.metrics == {"val_loss": 0.5, "test_mean_dice": 0.7}
    assert run.data.params == {"train/epochs": "2"}
    assert {"git_sha", "data_md5", "lock_digest", "stage", "network", "winner"} <= set(
        run.data.tags
    )
    store = mlflow.MlflowClient()
    assert [a.path for a in store.list_artifacts(candidate.run_id)] == ["metrics.json"]
    assert not (tmp_path / "mlruns").exists()


def test_a_run_in_another_mlflow_is_named(candidate) -> None:
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        tracking.complete_run(EXPERIMENT, "0" * 32, {}, {}, [])


def test_lineage_names_code_data_and_lock(tmp_path) -> None:
    (tmp_path / "data.dvc").write_text("outs:\n- md5: abc.dir\n  path: data\n")
    (tmp_path / "requirements.lock").write_text("torch==2\n")
    tags = tracking.lineage()
    assert tags["data_md5"] == "abc.dir"
    assert len(tags["lock_digest"]) == 64
    assert tags["git_sha"] == "none"  # this folder is no checkout


def test_an_exported_network_tells_nothing_of_the_machine(candidate) -> None:
    data = (candidate.folder / "model.onnx").read_bytes()
    assert b"site-packages" not in data and b".py" not in data


def test_a_version_whose_registration_was_cut_short_is_named(candidate, tmp_path) -> None:
    registry.register(candidate.folder, NAME, EXPERIMENT)
    store, _ = tracking.client(EXPERIMENT)
    store.delete_model_version_tag(NAME, "1", registry.INFO_TAG)
    with pytest.raises(InputError, match=r"version 1 is incomplete: .*; none is complete"):
        registry.fetch(NAME, "1", EXPERIMENT, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("version", ["2", "champion", "-1"])
def test_an_unknown_version_is_named(candidate, version, tmp_path) -> None:
    registry.register(candidate.folder, NAME, EXPERIMENT)
    with pytest.raises(InputError, match=f"no version '{version}': complete are 1"):
        registry.fetch(NAME, version, EXPERIMENT, tmp_path / "fetched")
