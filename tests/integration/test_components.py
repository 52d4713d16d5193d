"""Each component is imported and started once, so that a bad pin shows here and not in a run."""

import os
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import REPOSITORY
from tumorseg.core.environment import SILENT
from tumorseg.core.errors import MISTAKE


def test_retraining_runs_every_stage_in_order() -> None:
    from pipelines.retrain import STAGES

    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert tuple(stages) == STAGES


def lock() -> dict[str, str]:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): pinned for name, pinned in pairs}


def test_the_lock_pins_every_dependency_as_installed() -> None:
    pinned = lock()
    wanted = [Requirement(text) for text in requires("tumorseg") or []]
    assert len(wanted) > 30
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        assert version(name).split("+")[0] == pinned[name]
        assert requirement.specifier.contains(pinned[name]), requirement
    assert "torchvision" not in pinned


FLOW = """
from pipelines._flow import main, stage, step
from tumorseg.core.errors import InputError
from tumorseg.training.datasets import LoaderContext
tries = []
def flaky():
    tries.append(1)
    if len(tries) < 2: raise OSError("the disk blinked")
    return len(tries)
def wrong():
    tries.append(1)
    raise InputError("a.jpg: is broken; remove it")
@stage(name="probe")
def probe():
    print("tries", step(flaky, retries=2, delay_seconds=0.1)())
    tries.clear()
    worker = LoaderContext().Process(target=print, args=["loads"], kwargs={"flush": True})
    worker.start()
    worker.join()
    print("loader's worker ended with", worker.exitcode)
    try: step(wrong, retries=2, delay_seconds=0.1)()
    finally: print("wrong tries", len(tries))
main(probe)
"""


@pytest.mark.long
def test_a_prefect_server_runs_a_flow(prefect_url: str, tmp_path: Path) -> None:
    """A step's retry and the end without a traceback are Prefect's doing: seen in its log."""
    (tmp_path / "flows.py").write_text(FLOW)
    done = subprocess.run(
        [sys.executable, "flows.py"],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": prefect_url, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    assert "tries 2" in log and "wrong tries 1" in log and done.returncode == MISTAKE
    assert "loads" in log and "loader's worker ended with 0" in log
    assert "\nflows: a.jpg: is broken; remove it" in log
    second = log.split("wrong tries")[0].split("tries 2")[1]
    assert "InputError" in second and "Traceback" not in second


@pytest.mark.long
def test_monai_asks_no_server_and_leaves_no_file(tmp_path) -> None:
    code = (
        "import sys\n"
        "def watch(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'urllib.Request'):\n"
        "        print(event, args)\n"
        "sys.addaudithook(watch)\n"
        "import numpy as np\n"
        "from tumorseg.evaluation.metrics import distances\n"
        "distances(np.eye(9) > 0, np.ones((9, 9)) > 0, None, 1)\n"
        "assert 'monai' in sys.modules\n"
    )
    environment = os.environ | SILENT | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*")) == []


def test_onnx_runtime_has_no_way_to_report_home() -> None:
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*.so")
    assert b"events.data.microsoft.com" not in library.read_bytes()


def test_phone_home_is_off() -> None:
    import mlflow.telemetry.utils
    from prefect.settings import get_current_settings

    assert mlflow.telemetry.utils.is_telemetry_disabled()
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert get_current_settings().server.analytics_enabled is False
    assert {"BENTOML_DO_NOT_TRACK", "DVC_NO_ANALYTICS", "NO_ALBUMENTATIONS_UPDATE"} <= set(SILENT)
