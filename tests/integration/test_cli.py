import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import REPOSITORY
from tests.support.serving_model import disc, encode, write_model
from tumorseg.core.errors import MISTAKE

ENV = "import sys; from tumorseg.cli import main; sys.argv = ['tumorseg', 'env']; main()"


def tumorseg(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from tumorseg.cli import main; sys.argv[0] = 'tumorseg'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True
    )


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
def test_a_mistake_gets_one_sentence(
    tmp_path, monkeypatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    done = tumorseg(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("tumorseg: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_outside_a_repository_it_says_so(tmp_path) -> None:
    done = tumorseg("run", cwd=tmp_path)
    assert done.returncode == 1 and "repository's root" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_predict_works_anywhere_if_its_model_is_named(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(disc())))
    model = write_model(tmp_path / "model")
    done = tumorseg("predict", "a.png", "--model", str(model), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a_mask.png").exists() and "model: version 3" in done.stdout
    refused = tumorseg("predict", "a.png", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert refused.returncode == 1 and "is there already" in refused.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "a_mask.png", "model"}


def test_env_prints_what_a_shell_can_take_over(tmp_path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    printed = tumorseg("env", cwd=tmp_path).stdout
    script = f"{printed}\necho $GX_ANALYTICS_ENABLED $MLFLOW_TRACKING_URI"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.split()
    assert shown == ["false", os.environ["MLFLOW_TRACKING_URI"]]


def test_python_is_this_one_whether_or_not_the_environment_is_activated(tmp_path) -> None:
    """What dvc.yaml calls `python`, also where `.venv/bin/tumorseg run` is typed anywhere."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    bare = os.environ | {"PATH": "/usr/bin:/bin"}
    for code in ("import pipelines, os; print(os.environ['PATH'])", ENV):
        printed = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=bare | {"PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"},
        ).stdout
        assert f"{Path(sys.executable).parent}:/usr/bin:/bin" in printed


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


STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # it is imported twice
@pytest.mark.parametrize("name", [*STAGES, "crossvalidate", "segment", "retrain", "drift"])
@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--nonsense", 2)])
def test_a_pipeline_that_is_asked_for_help_runs_nothing(
    name, option, status, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", option])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"pipelines.{name}", run_name="__main__", alter_sys=True)
    assert ended.value.code == status and not list(tmp_path.iterdir())
    told = capsys.readouterr()
    assert f"usage: python -m pipelines.{name}" in told.out + told.err
