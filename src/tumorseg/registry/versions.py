"""The MLflow model registry: versions of `tumorseg`, and the alias `champion` on one of them."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import onnx
from filelock import FileLock, Timeout
from mlflow.entities.model_registry import ModelVersion

from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.registry.runs import connect, lookup

CHAMPION = "champion"
# A model folder is model.onnx with model.json. The registry holds the latter as this tag, which is
# set last: a version without it is incomplete.
INFO_TAG = "tumorseg.info"


@contextmanager
def locked(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Holds a lock file, which the end of the process frees too.

    Raises:
        InputError: Another process held it for `timeout_seconds`.
    """
    try:
        with FileLock(path, timeout=timeout_seconds):
            yield
    except Timeout:
        raise InputError(
            f"{path}: is held by another tumorseg process on this machine; wait until it has "
            "ended, or end it, and try again"
        ) from None


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def champion(name: str) -> ModelVersion | None:
    """The version that has the alias `champion`, or None where there is none."""
    return lookup(connect().get_model_version_by_alias, name, CHAMPION)


def set_champion(name: str, version: str) -> None:
    """Moves the alias `champion` to a version, which must be complete and verified."""
    connect().set_registered_model_alias(name, CHAMPION, version)


def register(folder: Path, name: str) -> str:
    """Registers a model folder under its run as a new version.

    It is an MLflow model of the onnx flavour, so that
    `mlflow.onnx.load_model("models:/tumorseg@champion")` works too.

    Args:
        folder: Holds model.onnx and model.json with `run_id` and `digest`.
        name: The registered model's name.

    Returns:
        The version, which is now also in `folder`'s model.json.
    """
    info = json.loads((folder / "model.json").read_text())
    store = connect()
    with mlflow.start_run(run_id=info["run_id"]):
        logged = mlflow.onnx.log_model(
            onnx.load(folder / "model.onnx"),
            name="model",
            registered_model_name=name,
            save_as_external_data=False,
            pip_requirements=["onnx", "onnxruntime"],
        )
    info["version"] = str(logged.registered_model_version)
    # MLflow serialises the model again, so that the registered file may have another digest.
    _download(name, info["version"], folder)
    info["digest"] = digest_of(folder / "model.onnx")
    store.set_model_version_tag(name, info["version"], "digest", info["digest"])
    store.set_model_version_tag(name, info["version"], INFO_TAG, json.dumps(info))
    write_json(folder / "model.json", info)
    return str(info["version"])


def info_of(name: str, version: str) -> dict[str, Any]:
    """The model.json of a version.

    Raises:
        InputError: There is no such version, or it is incomplete.
    """
    found = lookup(connect().get_model_version, name, version)
    if found is None:
        raise InputError(f"{name} has no version {version!r}: {complete_versions(name)}")
    if INFO_TAG not in found.tags:
        raise InputError(
            f"{name} version {version} is incomplete: the register stage was stopped, or did not "
            f"make it; {complete_versions(name)}"
        )
    info: dict[str, Any] = json.loads(found.tags[INFO_TAG])
    return info


def complete_versions(name: str) -> str:
    """In words, which versions are complete, the newest first."""
    found = connect().search_model_versions(f"name = '{name}'")
    numbers = sorted((int(one.version) for one in found if INFO_TAG in one.tags), reverse=True)
    return f"complete are {', '.join(map(str, numbers))}" if numbers else "none is complete"


def fetch(name: str, version: str, folder: Path) -> dict[str, Any]:
    """Downloads a version as a model folder and verifies its digest.

    Returns:
        The contents of model.json.

    Raises:
        InputError: There is no such version, it is incomplete, or its file has changed.
    """
    info = info_of(name, version)
    folder.mkdir(parents=True, exist_ok=True)
    _download(name, version, folder)
    found = digest_of(folder / "model.onnx")
    if found != info["digest"]:
        raise InputError(
            f"{name} version {version}: model.onnx has sha256 {found}, but {info['digest']} was "
            "registered; it was tampered with or damaged: restore the file, or return to the "
            "champion before by `tumorseg rollback`"
        )
    write_json(folder / "model.json", info)
    return info


def _download(name: str, version: str, folder: Path) -> None:
    mlflow.artifacts.download_artifacts(f"models:/{name}/{version}/model.onnx", dst_path=folder)
