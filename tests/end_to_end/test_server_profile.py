"""The whole job on PostgreSQL, S3, MLflow and Prefect, and what becomes of it without one."""

import subprocess
import sys
import time

import pytest
import yaml

from benchmarks import faults
from deploy import local
from deploy.services import programs
from tumorseg.core.errors import InputError

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
# Two flow runs through the pool, as `prefect.yaml` or a person would start them.
ENQUEUE = """
import sys
from prefect import flow
from prefect.deployments import run_deployment
made = flow.from_source(source=sys.argv[1], entrypoint="pipelines/train.py:train")
# Not `made.deploy`, whose look for workers Prefect's server refuses in 3.8.8.
made.to_deployment(name="pooled", work_pool_name="two").apply()
for network in ("unet", "attention_unet"):
    run_deployment("train/pooled", parameters={"network": network, "seed": 0}, timeout=0)
"""


@pytest.fixture(scope="module")
def here():
    """A small repository on the profile, after one unbroken run."""
    try:
        programs()
    except InputError as error:
        pytest.skip(str(error))
    with faults.place() as made:
        yield made


def test_everything_is_where_a_deployment_keeps_it(here, tmp_path, capsys) -> None:
    pulled = local.push_and_pull(here.servers, here.root, tmp_path / "elsewhere")
    sqlite = local.sqlite_written(here.root, 0)
    assert local.report(here.servers, pulled, sqlite)
    shown = capsys.readouterr().out
    stages = len(yaml.safe_load((here.root / "dvc.lock").read_text())["stages"])
    assert pulled > 40 and f"| PostgreSQL: prefect | flow runs completed | {stages} |" in shown
    assert not [name for name in sqlite if "mlflow" in name or "prefect" in name]
    assert not (here.root / ".state" / "mlflow-artifacts").exists()
    places = here.servers.query("mlflow", "SELECT DISTINCT artifact_uri FROM runs")
    assert places and all(place.startswith("mlflow-artifacts:/") for (place,) in places)


def test_two_workers_of_a_pool_train_at_once(here) -> None:
    here.change(epochs=40)
    root, environment = here.root, local.client_environment(here.servers, here.root)
    environment |= {"PREFECT_WORKER_QUERY_SECONDS": "1", "OMP_NUM_THREADS": "1"}
    prefect = [sys.executable, "-m", "prefect"]
    call = {"cwd": root, "env": environment, "check": True, "timeout": 120}
    subprocess.run(
        [*prefect, "work-pool", "create", "two", "--type", "process", "--overwrite"], **call
    )
    command = [*prefect, "worker", "start", "--pool", "two", "--type", "process", "--limit", "1"]
    logs = [root.with_name(f"worker-{name}.log") for name in "ab"]
    workers = []
    for name, log in zip("ab", logs, strict=True):
        with log.open("wb") as output:
            workers.append(
                subprocess.Popen(
                    [*command, "--name", name],
                    cwd=root,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    wanted = (
        "SELECT name, state_type, start_time, end_time, tags FROM flow_run WHERE deployment_id IS "
        "NOT NULL ORDER BY start_time"
    )
    try:
        subprocess.run([sys.executable, "-c", ENQUEUE, str(root)], **call)
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            runs = here.servers.query("prefect", wanted)
            if len(runs) == 2 and {run[1] for run in runs} <= {"COMPLETED", "FAILED", "CRASHED"}:
                break
            time.sleep(1)
    finally:
        for worker in workers:
            worker.terminate()
            try:
                worker.wait(60)
            except subprocess.TimeoutExpired:  # how a worker ends is not what this is about
                worker.kill()
    said = "".join(log.read_text(errors="replace")[-3000:] for log in logs)
    assert [run[1] for run in runs] == ["COMPLETED", "COMPLETED"], said
    first, second = runs
    assert second[2] < first[3], "they ran one after the other"
    assert first[4] != second[4]  # two processes
    for network in ("unet", "attention_unet"):
        assert (root / f"artifacts/train/{network}-0/weights.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("PostgreSQL killed in train, back", 0),
        ("S3 killed in register, back", 0),
        ("Prefect killed in train, away", 1),
        ("tumorseg run killed in train", None),
    ],
)
def test_a_fault_loses_nothing(here, name, status) -> None:
    found = faults.provoke(here, name, 50 + list(faults.CASES).index(name))
    assert found.good, found
    if status != 0 or found.status == 0:
        assert bool(found.status) == bool(status)
    if name == "tumorseg run killed in train":
        crashed = "SELECT count(*) FROM flow_run WHERE state_type = 'CRASHED'"
        assert found.resumed and here.servers.query("prefect", crashed)[0][0] >= 1
