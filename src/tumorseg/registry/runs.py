"""MLflow runs: one per training, with its lineage, parameters, metrics and artifacts."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
import requests
import yaml
from mlflow.tracking import MlflowClient

from tumorseg.core.environment import STATE, without_password
from tumorseg.core.errors import InputError

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from lightning.pytorch.loggers import MLFlowLogger

T = TypeVar("T")


def lookup(call: Callable[..., T], *args: str) -> T | None:
    """The result of an MLflow call; None where MLflow has nothing of that name, alias or id."""
    try:
        return call(*args)
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def lineage() -> dict[str, str]:
    """The tags of every run that identify code, data and dependencies.

    Returns:
        git_sha (with `-dirty` where tracked files differ), data_md5 of data.dvc, lock_digest
        (sha256 of requirements.lock); `none` where there is no such thing.
    """
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    tags = {"git_sha": commit.stdout.strip() or "none", "data_md5": "none", "lock_digest": "none"}
    if Path("data.dvc").exists():
        tags["data_md5"] = yaml.safe_load(Path("data.dvc").read_text())["outs"][0]["md5"]
    if Path("requirements.lock").exists():
        tags["lock_digest"] = hashlib.sha256(Path("requirements.lock").read_bytes()).hexdigest()
    return tags


def recipe(params: Path = Path("params.yaml")) -> str:
    """A digest of sections augment, train (without seeds) and evaluate of params.yaml."""
    sections = yaml.safe_load(params.read_text())
    named = {name: sections[name] for name in ("augment", "train", "evaluate")}
    named["train"] = {key: value for key, value in named["train"].items() if key != "seeds"}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def connect() -> MlflowClient:
    """A client of the MLflow that MLFLOW_TRACKING_URI names."""
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return MlflowClient()


def experiment_id(experiment: str) -> str:
    """The id of an experiment, which is created where it does not exist."""
    store = connect()
    found = store.get_experiment_by_name(experiment)
    if found is not None:
        return str(found.experiment_id)
    # Without a server, MLflow would put artifacts into ./mlruns.
    server = os.environ["MLFLOW_TRACKING_URI"].startswith("http")
    location = None if server else (STATE / "mlflow-artifacts").resolve().as_uri()
    # Otherwise MLflow shows it as an experiment with language models, without metrics.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(store.create_experiment(experiment, artifact_location=location, tags=kind))


def unreachable() -> str | None:
    """Why MLflow cannot answer, without its retries of minutes; None if it may."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return "its database does not exist"
    if uri.startswith("http"):
        try:
            requests.get(f"{uri}/health", timeout=5)  # as MLflow's client does, with its account
        except requests.RequestException as error:
            return type(error).__name__
    return None


def page(experiment: str) -> str:
    """The part of the MLflow UI's address that shows the experiment's runs as charts."""
    number = experiment_id(experiment)
    return f"/#/experiments/{number}/runs?workflowType=machine_learning&compareRunsMode=CHART"


def start_run(
    experiment: str, network: str, seed: int, params: dict[str, Any], run_id: str | None = None
) -> "MLFlowLogger":
    """Starts a run for Lightning to log each epoch to, or continues one.

    Args:
        experiment: The experiment's name.
        network: `unet` or `attention_unet`.
        seed: The training's.
        params: Nested parameters; they are logged flat, as `augment.zoom`.
        run_id: Of an interrupted training; ignored if the run was deleted or is in another MLflow.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    experiment_id(experiment)
    run = None if run_id is None else lookup(connect().get_run, run_id)
    if run is None or run.info.lifecycle_stage != "active":
        run_id = None
    logger = MLFlowLogger(
        experiment_name=experiment,
        run_name=f"{network}-{seed}",
        run_id=run_id,
        tracking_uri=os.environ["MLFLOW_TRACKING_URI"],
        tags={"stage": "train", "network": network, "seed": str(seed)} | lineage(),
    )
    logger.log_hyperparams(params)
    return logger


def latest_figures(experiment: str, tags: dict[str, str]) -> dict[str, dict[str, float]]:
    """The networks' latest metrics under the given tags: network → metric → value."""
    wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    runs = connect().search_runs(
        [experiment_id(experiment)], wanted, order_by=["attributes.start_time DESC"]
    )
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        if "over_seeds_test_mean_dice" in run.data.metrics:
            found.setdefault(run.data.tags["network"], dict(run.data.metrics))
    return found


def complete_run(
    run_id: str, metrics: dict[str, float | None], tags: dict[str, str], artifacts: list[Path]
) -> None:
    """Adds metrics (those that are defined), tags and files to the run of a training.

    Raises:
        InputError: The run is not in this MLflow.
    """
    store = connect()
    if lookup(store.get_run, run_id) is None:
        raise InputError(
            f"MLflow at {_address()} has no run {run_id} of the training: set MLFLOW_TRACKING_URI "
            "to where it is, or train again with `dvc repro --force train`"
        )
    defined = {name: figure for name, figure in metrics.items() if figure is not None}
    mlflow.log_metrics(defined, run_id=run_id)
    for name, tag in tags.items():
        store.set_tag(run_id, name, tag)
    for path in artifacts:
        store.log_artifact(run_id, str(path))


def read_artifact(run_id: str, name: str) -> Any:
    """Reads a JSON file among the artifacts of a run.

    Raises:
        InputError: The run or the file is not in this MLflow.
    """
    files = lookup(connect().list_artifacts, run_id) or []
    if name not in [file.path for file in files]:
        raise InputError(
            f"MLflow at {_address()} has no {name} in run {run_id}: set MLFLOW_TRACKING_URI to "
            "where the model was registered, or run `dvc repro --force register`, then `dvc repro`"
        )
    return mlflow.artifacts.load_dict(f"runs:/{run_id}/{name}")


def _address() -> str:
    return without_password(os.environ["MLFLOW_TRACKING_URI"])
