"""The MLflow model registry: versions of `tumorseg`, and the alias `champion` on one of them."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import onnx
from mlflow.entities.model_registry import ModelVersion

from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.registry.runs import MISSING, client

CHAMPION = "champion"
# A model folder is model.onnx with model.json; the registry keeps the latter as this tag.
INFO_TAG = "tumorseg.info"


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def champion(name: str, experiment: str) -> ModelVersion | None:
    """The version that carries the alias, or None where no model has been registered."""
    store, _ = client(experiment)
    try:
        return store.get_model_version_by_alias(name, CHAMPION)
    except mlflow.MlflowException as error:
        if error.error_code in MISSING:
            return None
        raise


def register(folder: Path, name: str, experiment: str) -> str:
    """Registers a model folder under its run as a new version.

    The ONNX file goes in as an MLflow model of the onnx flavour, so that
    `mlflow.onnx.load_model("models:/tumorseg@champion")` works for others too.

    Args:
        folder: Holds model.onnx and model.json with `run_id` and `digest`.
        name: The registered model's name.
        experiment: The run's experiment.

    Returns:
        The version; model.json in `folder` now carries it.
    """
    info = json.loads((folder / "model.json").read_text())
    store, _ = client(experiment)
    with mlflow.start_run(run_id=info["run_id"]):
        logged = mlflow.onnx.log_model(
            onnx.load(folder / "model.onnx"),
            name="model",
            registered_model_name=name,
            save_as_external_data=False,
            pip_requirements=["onnx", "onnxruntime"],
        )
    info["version"] = str(logged.registered_model_version)
    # MLflow writes the protocol buffer anew: what is registered is what must be served.
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(_download(name, info["version"], Path(scratch)), folder / "model.onnx")
    info["digest"] = digest_of(folder / "model.onnx")
    store.set_model_version_tag(name, info["version"], "digest", info["digest"])
    store.set_model_version_tag(name, info["version"], INFO_TAG, json.dumps(info))
    write_json(folder / "model.json", info)
    return info["version"]


def promote(name: str, version: str, experiment: str) -> None:
    """Moves the alias `champion` to a version."""
    client(experiment)[0].set_registered_model_alias(name, CHAMPION, version)


def describe(name: str, version: str, experiment: str, text: str) -> None:
    """Puts a text under a version on the registry's page."""
    client(experiment)[0].update_model_version(name, version, text)


def info_of(name: str, version: str, experiment: str) -> dict[str, Any]:
    """The model.json of a version.

    Raises:
        InputError: There is no such version, or it is incomplete.
    """
    store, _ = client(experiment)
    try:
        tags = store.get_model_version(name, version).tags
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise InputError(
                f"{name} has no version {version!r}: {named(name, experiment)}"
            ) from None
        raise
    if INFO_TAG not in tags:
        raise InputError(
            f"{name} version {version} is incomplete: the register stage was stopped before its "
            f"end, or did not make it; {named(name, experiment)}"
        )
    info: dict[str, Any] = json.loads(tags[INFO_TAG])
    return info


def named(name: str, experiment: str) -> str:
    """In words, which versions are complete."""
    store, _ = client(experiment)
    found = store.search_model_versions(f"name = '{name}'")
    whole = sorted((int(one.version) for one in found if INFO_TAG in one.tags), reverse=True)
    return f"complete are {', '.join(map(str, whole))}" if whole else "none is complete"


def fetch(name: str, version: str, experiment: str, folder: Path) -> dict[str, Any]:
    """Downloads a version as a model folder and checks its digest.

    Returns:
        The contents of model.json.

    Raises:
        InputError: There is no such version, it is incomplete, or its file has changed.
    """
    info = info_of(name, version, experiment)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(_download(name, version, Path(scratch)), folder / "model.onnx")
    found = digest_of(folder / "model.onnx")
    if found != info["digest"]:
        raise InputError(
            f"{name} version {version}: model.onnx has sha256 {found}, but {info['digest']} was "
            "registered; the artifact store was tampered with or damaged: bring the file back; "
            "where it is the champion's, `tumorseg rollback` leaves it"
        )
    write_json(folder / "model.json", info)
    return info


def _download(name: str, version: str, scratch: Path) -> Path:
    folder = mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(scratch))
    return Path(folder) / "model.onnx"
