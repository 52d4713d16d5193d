"""Work that is dealt out over Dask's workers: whose address is wrong, and what survives a kill."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
import yaml
from distributed import LocalCluster
from PIL import Image

from pipelines import _fanout
from tests.conftest import REPOSITORY, TINY_TRAIN
from tests.support.archives import masks
from tests.support.serving_model import disc, encode, write_model
from tumorseg.core import environment
from tumorseg.core.errors import MISTAKE, InputError
from tumorseg.core.params import SegmentParams, load_params
from tumorseg.core.prefect_server import free_port

SECRET = "SMITH-JOHN"
METHODS = ("unet", "attention_unet", "ensemble", "copy")  # that a fold is judged for


@pytest.mark.parametrize(
    ("address", "valid"),
    [
        *((wrong, False) for wrong in ("localhost:8786", "http://a:8786", "tcp://a", "tcp://a:b")),
        *((right, True) for right in ("tcp://10.0.0.1:8786", "tls://host.name:1", "tcp://[::1]:1")),
    ],
)
def test_addresses_of_schedulers_are_checked(tmp_path, address, valid) -> None:
    document = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    document["segment"]["scheduler"] = address
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    if valid:
        assert load_params(SegmentParams, tmp_path / "params.yaml").scheduler == address
    else:
        with pytest.raises(InputError, match=r"segment\.scheduler"):
            load_params(SegmentParams, tmp_path / "params.yaml")


def told(scheduler: str) -> str:
    params = load_params(SegmentParams, REPOSITORY / "params.yaml")
    changed = params.model_copy(update={"scheduler": scheduler})
    with pytest.raises(InputError) as caught, _fanout.workers(changed):
        pass
    return str(caught.value)


def test_a_scheduler_that_does_not_answer_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr(_fanout, "PATIENCE_SECONDS", 1)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    address = f"tcp://127.0.0.1:{free_port(0)}"
    said = told(address)
    assert f"{address}: needs a running `dask scheduler`" in said and "\n" not in said


@pytest.mark.parametrize(
    ("count", "threads", "prefect"), [(0, 1, "http://h/api"), (1, 2, "http://h/api"), (1, 1, None)]
)
def test_a_scheduler_needs_fit_workers_and_a_prefect_server(
    monkeypatch, count, threads, prefect
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    if prefect:
        monkeypatch.setenv("PREFECT_API_URL", prefect)
    with LocalCluster(
        n_workers=count,
        threads_per_worker=threads,
        processes=False,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address=None,
    ) as cluster:
        assert "--nthreads 1`, and PREFECT_API_URL set" in told(cluster.scheduler_address)


@pytest.fixture
def place(tmp_path, prefect_url) -> SimpleNamespace:
    """A workplace with params, a model and an archive, in which flows are commands."""
    root = tmp_path / "work"
    (root / ".state").mkdir(parents=True)
    write_model(root / "model")
    for number in range(96):
        path = root / "archive" / SECRET / f"{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.roll(disc(700, 700), 5 * number, axis=1)
        path.write_bytes(encode(Image.fromarray(picture), compress_level=1))
    (root / "archive" / SECRET / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    kept = {k: v for k, v in os.environ.items() if k not in environment.defaults(root)}
    kept |= environment.defaults(root) | {"PREFECT_API_URL": prefect_url}
    kept["PYTHONPATH"] = f"{REPOSITORY / 'src'}:{REPOSITORY}"

    def configure(**changes) -> None:
        document = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
        document["train"] = TINY_TRAIN
        document["augment"]["image_size"] = 64
        document["segment"] |= {"slices": 24, "threads": 1} | changes
        (root / "params.yaml").write_text(yaml.safe_dump(document))

    def start(output: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "pipelines.segment", "archive", "--output", output]
        with (root / "log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--model", "model"], cwd=root, env=kept, stdout=log, stderr=log
            )

    configure()
    return SimpleNamespace(root=root, env=kept, configure=configure, start=start)


def segmented(place, output: str) -> dict[str, bytes]:
    """Segments the archive; one file of it is bad."""
    assert place.start(output).wait(300) == MISTAKE, (place.root / "log").read_text()
    found = masks(place.root / output)
    assert len(found) == 96, (place.root / "log").read_text()
    return found


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.long
def test_one_worker_and_two_of_which_one_is_killed_write_the_same_masks(place) -> None:
    place.configure(workers=1, threads=2)
    one = segmented(place, "one")
    place.configure(workers=2)
    process = place.start("two")
    wait_for(lambda: len(masks(place.root / "two")) > 30, process)
    children = psutil.Process(process.pid).children(recursive=True)
    max(children, key=lambda child: child.cpu_times().user).kill()  # a busy worker
    assert len(masks(place.root / "two")) < 90  # midway
    assert process.wait(300) == MISTAKE, (place.root / "log").read_text()
    assert masks(place.root / "two") == one
    assert not list((place.root / "two").rglob(".[0-9]*_mask.png"))
    tables = [(place.root / name / "summary.csv").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1] and "bad.png" in tables[0]
    # Neither what is printed nor what Prefect keeps names a file or a folder below the archive.
    printed = (place.root / "log").read_text()
    assert "1 of 97 files have no mask" in printed and SECRET not in printed
    url = place.env["PREFECT_API_URL"]
    for what in ("logs", "flow_runs", "task_runs"):
        kept = httpx.post(f"{url}/{what}/filter", json={"limit": 200}, timeout=20)
        assert kept.status_code == 200 and len(kept.json()) and SECRET not in kept.text


@pytest.mark.long
def test_a_killed_flow_goes_on_where_it_was(place) -> None:
    process = place.start("out")
    wait_for(lambda: len(masks(place.root / "out")) > 30, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(children, 60)
    assert not any(child.is_running() for child in children)  # its workers go with it
    times = {p: p.stat().st_mtime_ns for p in (place.root / "out").rglob("[!.]*_mask.png")}
    assert 30 < len(times) < 96 and not (place.root / "out" / "summary.csv").exists()
    segmented(place, "out")
    again = [path for path, was in times.items() if path.stat().st_mtime_ns != was]
    assert len(again) <= 2  # written, but not noted yet, by each of two workers


@pytest.mark.long
def test_a_scheduler_that_is_there_already_is_used(place) -> None:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        place.configure(scheduler=cluster.scheduler_address)
        segmented(place, "there")
        assert len(cluster.workers) == 2  # and left as it was


@pytest.mark.long
def test_folds_are_trained_once_each_and_tabulated(place, workplace) -> None:
    import pandas as pd

    root: Path = place.root
    (root / "artifacts" / "split").mkdir(parents=True)
    (root / "artifacts" / "validate").mkdir()
    np.save(root / "artifacts" / "validate" / "thumbnails.npy", workplace["thumbnails"])
    workplace["manifest"].to_parquet(root / "artifacts" / "split" / "manifest.parquet")
    shutil.copytree(workplace["folder"] / "arrays", root / "artifacts" / "augment" / "arrays")
    shutil.copy(workplace["folder"] / "policy.json", root / "artifacts" / "augment")
    document = yaml.safe_load((root / "params.yaml").read_text())
    document["crossvalidate"] |= {"folds": 2, "workers": 2, "threads": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(document))

    def run() -> None:
        command = [sys.executable, "-m", "pipelines.crossvalidate"]
        done = subprocess.run(command, cwd=root, env=place.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    run()
    table = pd.read_csv(root / "reports" / "crossvalidation.csv")
    assert table["fold"].tolist() == [1, 1, 2, 2]
    assert table["network"].tolist() == 2 * ["unet", "attention_unet"]
    assert table.drop_duplicates("fold")["slices"].sum() == 22
    for row in table.itertuples():
        (folder,) = (root / ".state" / "crossvalidate" / f"{row.network}-{row.fold}").iterdir()
        assert {p.name for p in folder.iterdir()} >= {"run.json", "weights.safetensors"}
        trained = json.loads((folder / "run.json").read_text())
        assert trained["best_epoch"] == trained["epochs"] == row.epochs
    page = (root / "reports" / "crossvalidation.md").read_text()
    assert "Attention U-Net and U-Net" in page or "Attention U-Net minus U-Net" in page
    scored = pd.read_csv(root / "reports" / "crossvalidation_slices.csv")
    assert scored.groupby("method").size().to_dict() == dict.fromkeys(METHODS, 22)
    weights = sorted((root / ".state" / "crossvalidate").rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in weights]
    weights[0].with_name("run.json").unlink()  # as if it had been killed at its very end
    run()
    changed = [path.stat().st_mtime_ns != was for path, was in zip(weights, times, strict=True)]
    assert changed == [True, False, False, False]
    assert table.drop(columns="seconds").equals(
        pd.read_csv(root / "reports" / "crossvalidation.csv").drop(columns="seconds")
    )
