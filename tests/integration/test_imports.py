"""Imports point one way, and importing the logic starts nothing."""

import os
import pkgutil
import subprocess
import sys

import pytest

import tumorseg
from tests.conftest import REPOSITORY


def test_the_contract_of_the_rooms_holds() -> None:
    """`.importlinter`: layers, no circles, and who may know Prefect, DVC and albumentations."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_importing_writes_nothing_into_the_home_directory(tmp_path) -> None:
    """Each module in one process with an empty home, and the environment that a run sets."""
    home, state = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    state.mkdir()
    names = [module.name for module in pkgutil.walk_packages(tumorseg.__path__, "tumorseg.")]
    names.remove("tumorseg.serving.service")  # which needs a model
    code = (
        "import sys, importlib\n"
        "from pathlib import Path\n"
        "from tumorseg.core import environment\n"
        "environment.set_up(Path(sys.argv[1]))\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "import pipelines.retrain, prefect, mlflow, bentoml\n"
    )
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LD_LIBRARY_PATH")}
    subprocess.run(
        [sys.executable, "-c", code, str(state), *names],
        env=kept | {"HOME": str(home), "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"},
        cwd=REPOSITORY,
        check=True,
    )
    assert [str(p.relative_to(home)) for p in home.rglob("*")] == []
