"""Imports point one way, and importing the logic starts nothing."""

import ast
import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

SOURCES = sorted((REPOSITORY / "src" / "tumorseg").rglob("*.py"))
# All that the service may use of the rest: what the bento carries.
SHARED = {"errors", "intensity", "masks", "orientation", "preprocess", "serving"}


def imported(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_logic_imports_no_pipeline_and_no_prefect(path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"pipelines", "prefect", "dvc", "deploy"}


@pytest.mark.parametrize("path", [p for p in SOURCES if "serving" in p.parts], ids=lambda p: p.stem)
def test_serving_imports_nothing_of_training(path) -> None:
    second = {name.split(".")[1] for name in imported(path) if name.startswith("tumorseg.")}
    assert second <= SHARED


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_only_one_module_knows_albumentations(path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert ("albumentations" in roots) == (path.stem == "augmentation")


def test_no_module_is_longer_than_a_reader_s_patience() -> None:
    files = [*SOURCES, *(REPOSITORY / "pipelines").glob("*.py")]
    assert not [path.name for path in files if len(path.read_text().splitlines()) > 300]


def test_importing_writes_nothing_into_the_home_directory(tmp_path) -> None:
    """Each module in one process with an empty home, and the environment that a run sets."""
    names = [
        "tumorseg." + str(p.relative_to(REPOSITORY / "src" / "tumorseg")).removesuffix(".py")
        .replace("/", ".").replace(".__init__", "")
        for p in SOURCES
        if p.stem != "service"  # which needs a model
    ]  # fmt: skip
    names = [name.removesuffix(".__init__") for name in names]
    home, state = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    state.mkdir()
    code = (
        "import json, sys, importlib\n"
        "from pathlib import Path\n"
        "from tumorseg import environment\n"
        "environment.set_up(Path(sys.argv[1]))\n"
        "for name in json.loads(sys.argv[2]): importlib.import_module(name)\n"
        "import pipelines.retrain, prefect, mlflow, bentoml\n"
    )
    import os

    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LD_LIBRARY_PATH")}
    subprocess.run(
        [sys.executable, "-c", code, str(state), json.dumps(names)],
        env=kept | {"HOME": str(home)},
        cwd=REPOSITORY,
        check=True,
    )
    assert [str(p.relative_to(home)) for p in home.rglob("*")] == []
