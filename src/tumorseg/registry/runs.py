"""MLflow runs: one a training, with what it was made from, what it scored and what it drew."""

import hashlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import requests
import yaml
from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient

from tumorseg.core.environment import STATE, without_password
from tumorseg.core.errors import InputError

if TYPE_CHECKING:  # it brings torch, which takes seconds that only a training has to spend
    from lightning.pytorch.loggers import MLFlowLogger

# What MLflow answers where something is not there, or cannot be.
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def lineage() -> dict[str, str]:
    """What identifies code, data and dependencies: the tags of every run.

    Returns:
        git_sha (with `-dirty` where tracked files differ; `none` outside git), data_md5 of
        data.dvc, lock_digest (sha256 of requirements.lock).
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
    """A digest of what a network's figures depend on besides data, split and seed.

    Args:
        params: With the sections augment, train and evaluate.
    """
    sections = yaml.safe_load(params.read_text())
    named = {name: sections[name] for name in ("augment", "train", "evaluate")}
    named["train"] = {key: value for key, value in named["train"].items() if key != "seeds"}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def client(experiment: str) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment, made where there is none."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    mlflow.set_tracking_uri(uri)
    made = MlflowClient()
    found = made.get_experiment_by_name(experiment)
    if found is not None:
        return made, found.experiment_id
    # A server chooses its own place for artifacts; without one, MLflow would take ./mlruns.
    server = uri.startswith("http")
    location = None if server else (STATE / "mlflow-artifacts").resolve().as_uri()
    # Without the kind, MLflow shows an experiment as one of language models, without metrics.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return made, made.create_experiment(experiment, artifact_location=location, tags=kind)


def silence() -> str | None:
    """Why MLflow would not answer, where that is quick to tell; None if it may.

    Asked all the same, it would make a database, or try for minutes.
    """
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return "its database is not there"
    if uri.startswith("http"):
        try:
            requests.get(f"{uri}/health", timeout=5)  # as MLflow's client does, accounts and all
        except requests.RequestException as error:
            return type(error).__name__
    return None


def page(experiment: str) -> str:
    """The part of the MLflow UI's address that shows the experiment's runs as charts.

    Without it the UI opens on its pages for language models, which show no metric.
    """
    _, number = client(experiment)
    return f"/#/experiments/{number}/runs?workflowType=machine_learning&compareRunsMode=CHART"


def start_run(
    experiment: str, network: str, seed: int, params: dict[str, Any], run_id: str | None = None
) -> "MLFlowLogger":
    """Starts a run for Lightning to log each epoch to, or goes on with one.

    Args:
        experiment: The experiment's name.
        network: `unet` or `attention_unet`.
        seed: With the network, it names the run.
        params: Nested parameters; they are logged flat, as `augment.zoom`.
        run_id: Of a training that was interrupted.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    store, _ = client(experiment)
    if run_id is not None:
        try:
            if store.get_run(run_id).info.lifecycle_stage != "active":
                run_id = None  # deleted in MLflow's page meanwhile
        except mlflow.MlflowException as error:
            if error.error_code not in MISSING:
                raise
            run_id = None  # another MLflow than the one it began in
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
    """What the networks last scored under the given tags: network → metric → value."""
    store, number = client(experiment)
    wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    runs = store.search_runs([number], wanted, order_by=["attributes.start_time DESC"])
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        if "over_seeds_test_mean_dice" in run.data.metrics:
            found.setdefault(run.data.tags["network"], dict(run.data.metrics))
    return found


def complete_run(
    experiment: str,
    run_id: str,
    metrics: dict[str, float | None],
    tags: dict[str, str],
    artifacts: list[Path],
) -> None:
    """Attaches figures (those that are defined), tags and files to the run of a training.

    Raises:
        InputError: The run is not in this MLflow.
    """
    store, _ = client(experiment)
    try:
        store.get_run(run_id)
    except mlflow.MlflowException as error:
        if error.error_code not in MISSING:  # it does not answer, which may pass
            raise
        place = without_password(os.environ["MLFLOW_TRACKING_URI"])
        raise InputError(
            f"MLflow at {place} has no run {run_id}, in which the network was trained: set "
            "MLFLOW_TRACKING_URI to where it is, or train again with `dvc repro --force train`"
        ) from None
    now = int(time.time() * 1000)
    store.log_batch(
        run_id,
        [Metric(name, figure, now, 0) for name, figure in metrics.items() if figure is not None],
        tags=[RunTag(name, tag) for name, tag in tags.items()],
    )
    for path in artifacts:
        store.log_artifact(run_id, str(path))


def attached(experiment: str, run_id: str, name: str) -> Any:
    """Reads a JSON file that is attached to a run.

    Raises:
        InputError: The run or the file is not in this MLflow.
    """
    store, _ = client(experiment)
    try:
        there = any(each.path == name for each in store.list_artifacts(run_id))
    except mlflow.MlflowException as error:
        if error.error_code not in MISSING:  # it does not answer, which may pass
            raise
        there = False
    if not there:
        place = without_password(os.environ["MLFLOW_TRACKING_URI"])
        raise InputError(
            f"MLflow at {place} has no {name} in run {run_id}: set MLFLOW_TRACKING_URI to where "
            "the model was registered; if it was by an earlier version, run `dvc repro --force "
            "register`, then `dvc repro`"
        )
    with tempfile.TemporaryDirectory() as scratch:
        found = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=name, dst_path=scratch
        )
        return json.loads(Path(found).read_text())
