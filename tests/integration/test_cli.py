"""The command `tumorseg` and the pipelines as commands."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import REPOSITORY
from tests.support.serving_model import disc, encode, write_model
from tumorseg import cli
from tumorseg.core.errors import MISTAKE

STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]


@pytest.fixture
def tumorseg(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """Calls the command in an empty repository; returns what ended it, or else what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tumorseg", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return str(ended.value.code) if ended.value.code else capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "use", "nowhere"], "nowhere: is no folder"),
        (["serve"], "make run"),
        (["serve", "--host", "0.0.0.0"], "TUMORSEG_API_KEY"),
        (["predict", "a.png"], "--url"),
        (["predict", "a.png", "--url", "http://localhost:1"], "a.png: does not exist"),
        (["predict", "a.png", "--model", "nowhere"], "nowhere/model.json cannot be read"),
        (["predict", "a.png", "--model", "m", "--url", "http://localhost:1"], "--model"),
        (["table"], "make run"),
        (["rollback"], "make run"),
        (["history"], "make run"),
    ],
)
def test_a_mistake_gets_one_sentence(tumorseg, arguments: list[str], message: str) -> None:
    answer = tumorseg(*arguments)
    assert answer.startswith("tumorseg: ") and message in answer and "\n" not in answer


def test_outside_a_repository_it_says_so(tumorseg, tmp_path) -> None:
    (tmp_path / "dvc.yaml").unlink()
    assert "repository's root" in tumorseg("run")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_predict_works_anywhere_if_its_model_is_named(tumorseg, tmp_path) -> None:
    (tmp_path / "dvc.yaml").unlink()
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(disc())))
    model = write_model(tmp_path / "model")
    assert "model: version 3" in tumorseg("predict", "a.png", "--model", str(model))
    assert (tmp_path / "a_mask.png").exists()
    assert "is there already" in tumorseg("predict", "a.png", "--url", "http://127.0.0.1:1")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.png", "a_mask.png", "model", "params.yaml"}


def test_env_prints_what_a_shell_can_take_over(tumorseg, monkeypatch) -> None:
    """With the folder of this Python first, which dvc.yaml calls `python`."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    script = f"{tumorseg('env')}\necho $GX_ANALYTICS_ENABLED $MLFLOW_TRACKING_URI $PATH"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    assert done.stdout.split() == ["false", os.environ["MLFLOW_TRACKING_URI"], path]


def test_a_pipeline_ends_without_a_traceback(tmp_path) -> None:
    """`python -m pipelines.train` where params.yaml has a wrong key."""
    params = (REPOSITORY / "params.yaml").read_text().replace("batch_size", "bach_size")
    (tmp_path / "params.yaml").write_text(params)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.train", "unet", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == MISTAKE
    assert re.search(
        r"^train: params\.yaml: .*train\.common\.bach_size: unknown key", done.stderr, re.M
    )
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # it is imported twice
@pytest.mark.parametrize("name", [*STAGES, "crossvalidate", "segment", "retrain", "drift"])
def test_a_pipeline_that_is_asked_for_help_runs_nothing(
    name, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"pipelines.{name}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0 and not list(tmp_path.iterdir())
    assert f"usage: python -m pipelines.{name}" in capsys.readouterr().out
