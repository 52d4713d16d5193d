"""`dvc repro` in a workspace of its own, on a small phantom set, up to a bento that answers."""

import base64
import io
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.conftest import REPOSITORY, TINY_TRAIN
from tests.support.retraining import copy_repository, variables
from tumorseg.core.environment import answers
from tumorseg.core.prefect_server import free_port
from tumorseg.data.coco import decode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]


@pytest.fixture(scope="module")
def workspace(phantom, prefect_url, tmp_path_factory) -> SimpleNamespace:
    """A copy of the repository with tiny params and the phantom under data/, after one repro."""
    root = tmp_path_factory.mktemp("end-to-end") / "repository"
    copy_repository(root)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    # Long enough to find something: two empty masks would agree about nothing.
    common = TINY_TRAIN["common"] | {"epochs": 15, "batch_size": 2}
    params["train"] = TINY_TRAIN | {"common": common}
    params["evaluate"] |= {"threshold": 0.2, "test_time_flips": True}
    params["augment"]["image_size"] = 64
    params["evaluate"]["bootstrap_samples"] = 100
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    kept = variables(root) | {"PREFECT_API_URL": prefect_url}

    def call(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=root, env=kept, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    call("tumorseg.cli", "data", "use", str(phantom))
    call("dvc", "repro")
    return SimpleNamespace(root=root, env=kept, call=call, params=params)


def executed(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def read(workspace, name: str) -> dict:
    return json.loads((workspace.root / name).read_text())


def test_the_reports_are_there_and_agree(workspace) -> None:
    figures = read(workspace, "reports/metrics.json")
    networks, baselines = ["unet", "attention_unet"], ["copy", "intensity", "background"]
    assert list(figures["valid"]) == [*networks, "ensemble"]
    assert list(figures["test"]) == [*networks, "ensemble", *baselines]
    per_slice = pd.read_csv(workspace.root / "reports" / "per_slice.csv")
    for method, rows in per_slice[per_slice["split"] == "test"].groupby("method"):
        assert rows["dice"].mean() == pytest.approx(figures["test"][method]["mean_dice"], abs=1e-5)
    for name in ("augmentation", "curves", "comparison", "predictions"):
        assert Image.open(workspace.root / "reports" / f"{name}.png").size[0] > 300
    assert (workspace.root / "reports" / "data_docs" / "index.html").exists()
    reported = (workspace.root / "reports" / "report.html").read_text()
    assert f"{figures['test']['unet']['mean_dice']:.3f}" in reported
    for name in ("model_card", "data_card"):
        assert (workspace.root / "reports" / f"{name}.md").read_text().startswith("# ")
    audit = read(workspace, "reports/audit.json")
    page = (workspace.root / "reports" / "audit.html").read_text()
    assert audit["images"] == 22 and "22 images" in page and page.count("data:image/jpeg") > 12
    copy = figures["test"]["copy"]["micro_dice"]
    assert audit["baselines"]["copy"]["micro_dice"] == pytest.approx(copy, abs=1e-5)
    assert read(workspace, "reports/split.json")["method"] == "official"
    assert read(workspace, "reports/split_optimism.json") == {}
    decision = read(workspace, "artifacts/promote/decision.json")
    assert (decision["decision"], decision["serving"], decision["champion"]) == ("first", "1", None)
    promotion = (workspace.root / "reports" / "promotion.md").read_text()
    assert (
        promotion.startswith("# Promotion: first")
        and decision["challenger"]["digest"][:12] in promotion
    )
    winner = figures["runs"][f"{figures['winner']}-{figures['winner_seed']}"]["test"]
    # As served and as evaluated is the same, but for the order in which floats are added.
    served = decision["figures"]["challenger_mean_dice"]
    assert served == pytest.approx(winner["mean_dice"], abs=0.01)
    assert decision["caveats"] == [
        "the test split has only 5 slices of 5 guessed groups: the interval says little"
    ]
    shown = workspace.call("dvc", "metrics", "show", "--json")
    assert "micro_dice" in shown
    workspace.call("dvc", "plots", "show", "--out", "plots")
    assert "val_loss" in (workspace.root / "plots" / "index.html").read_text()


def test_state_stays_inside_the_workspace(workspace) -> None:
    names = {path.name for path in (workspace.root / ".state").iterdir()}
    assert {"mlflow.db", "mlflow-artifacts", "bentoml", "dvc"} <= names
    assert not (workspace.root / "mlruns").exists()
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=workspace.root,
        capture_output=True,
        text=True,
    ).stdout
    untracked = {line[3:] for line in status.splitlines()}
    outputs = {n for n in untracked if not n.startswith(("src/", "pipelines/", ".dvc/", "plots/"))}
    assert outputs == {
        ".dvcignore", ".gitignore", "data.dvc", "dvc.lock", "dvc.yaml", "params.yaml",
        "reports/audit.json", "reports/split_optimism.json", "reports/metrics.json",
        "reports/split.json",
        "requirements.lock",
    }  # fmt: skip


def test_the_bento_answers_what_evaluate_computed(workspace) -> None:
    bento = read(workspace, "artifacts/package/bento.json")
    port = free_port(0)
    log = (workspace.root / "serve.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "bentoml", "serve", bento["tag"], "--port", str(port)],
        cwd=workspace.root.parent,  # away from the sources: the bento brings its own
        env={k: v for k, v in workspace.env.items() if k != "PYTHONPATH"}
        | {"TUMORSEG_STATISTICS": str(workspace.root / ".state" / "statistics.db")},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{url}/readyz"):
            late = process.poll() is not None or time.monotonic() > deadline
            assert not late, (workspace.root / "serve.log").read_text()
            time.sleep(0.5)
        masks = pd.read_parquet(workspace.root / "artifacts" / "evaluate" / "masks.parquet")
        figures = read(workspace, "reports/metrics.json")
        rows = masks.query("split == 'test' and method == @figures['winner']")
        rows = rows[rows["seed"] == figures["winner_seed"]]
        assert len(rows) == 5 and (rows["tp"] + rows["fp"]).sum() > 50
        for row in rows.itertuples():
            picture = (workspace.root / "data" / row.path).read_bytes()
            answer = httpx.post(f"{url}/segment", files={"file": ("a.jpg", picture)}, timeout=30)
            assert answer.status_code == 200, answer.text
            body = answer.json()
            served = np.array(Image.open(io.BytesIO(base64.b64decode(body["mask_png"])))) > 0
            evaluated = decode(row.mask_rle, *served.shape)
            union = (served | evaluated).sum()
            assert union == 0 or (served & evaluated).sum() / union >= 0.999
            assert body["model_digest"] == bento["digest"]
            assert body["model_version"] == bento["version"] == "1"
        page = httpx.get(f"{url}/", timeout=10)
        assert page.status_code == 200 and "Research use only" in page.text
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def test_drift_sees_what_the_bento_answered(workspace) -> None:
    workspace.call("pipelines.drift", "--now")
    found = read(workspace, "reports/drift.json")
    assert found["verdict"] == "too few slices" and found["slices"] == 5, found
    assert found["model"]["digest"] == read(workspace, "artifacts/package/bento.json")["digest"]
    assert found["sentence"] in (workspace.root / "reports" / "drift.md").read_text()


# The last test: it changes the workspace.
def test_only_what_depends_on_a_changed_key_is_out_of_date(workspace) -> None:
    assert executed(workspace.call("dvc", "repro")) == []
    workspace.params["train"]["unet"]["channels"] = [2, 4, 8]
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(workspace.params))
    assert executed(workspace.call("dvc", "repro", "--dry")) == ["train@unet-0"]
