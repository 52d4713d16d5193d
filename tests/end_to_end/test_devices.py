"""Several processes train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import TINY_TRAIN

WORKER = """
import json, os, sys
from pathlib import Path
from tumorseg.data.arrays import load_slices
from tumorseg.training.augmentation import load_policy
from tumorseg.core.params import TrainParams
from tumorseg.training.trainer import train

work, out, given = sys.argv[1:]
params = TrainParams.model_validate(json.loads(given))
rank = int(os.environ.get("NODE_RANK", 0)) + int(os.environ.get("LOCAL_RANK", 0))
seen = []
policy = load_policy(Path(work, "policy.json"))
def spy(image, mask, seed):
    seen.append(seed)
    if rank == 0 and len(seen) == int(os.environ.get("FAIL_AT", 0)):
        raise RuntimeError("out of memory")
    return policy(image, mask, seed)
slices = {s: load_slices(s, Path(work, "arrays")) for s in ("train", "valid")}
summary = train("attention_unet", 0, params, slices, spy, Path(out), Path(out, "unfinished"))
Path(out, f"rank-{rank}.json").write_text(json.dumps([seen, summary]))
"""


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def start(workplace, out: Path, devices: int, nodes: int, **variables: str) -> subprocess.Popen:
    """Starts a training in another process."""
    (out / "worker.py").write_text(WORKER)
    # Batch normalisation and the Dice of a batch see each process's share only; without them
    # the sum of two gradients is the gradient.
    changes = {"devices": devices, "nodes": nodes, "epochs": 3, "dice_weight": 0.0}
    gated = TINY_TRAIN["attention_unet"] | {"norm": "instance"}
    given = TINY_TRAIN | {"common": TINY_TRAIN["common"] | changes, "attention_unet": gated}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, out / "worker.py", workplace["folder"], out, json.dumps(given)],
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(workplace, out: Path, devices: int = 1, nodes: int = 1) -> tuple[list[int], dict]:
    """Trains on so many devices and nodes; all draws of all processes, and the summary."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} if nodes > 1 else {}
    variables = [meeting | {"NODE_RANK": str(n)} if nodes > 1 else {} for n in range(nodes)]
    for process in [start(workplace, out, devices, nodes, **given) for given in variables]:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed[-4000:]
    found = [json.loads(path.read_text()) for path in sorted(out.glob("rank-*.json"))]
    assert len(found) == found[0][1]["processes"] == devices * nodes
    return [seed for seeds, _ in found for seed in seeds], found[0][1]


@pytest.fixture(scope="module")
def alone(workplace, tmp_path_factory) -> tuple[list[int], pd.DataFrame]:
    """The draws and the history of one process."""
    out = tmp_path_factory.mktemp("alone")
    draws, _ = finished(workplace, out)
    return draws, pd.read_csv(out / "history.csv")


@pytest.mark.long
@pytest.mark.parametrize(("devices", "nodes"), [(2, 1), (1, 2)])
def test_two_processes_train_as_one_does(workplace, alone, tmp_path, devices, nodes) -> None:
    draws, _ = finished(workplace, tmp_path, devices, nodes)
    assert sorted(draws) == sorted(alone[0])
    # Adam makes much of small gradients' rounding, so the weights themselves are not compared.
    together = pd.read_csv(tmp_path / "history.csv")
    for figure in ("train_loss", "val_loss"):
        expected = alone[1][figure].tolist()
        assert together[figure].tolist() == pytest.approx(expected, rel=0.02), figure
    assert together["train_loss"][0] == pytest.approx(alone[1]["train_loss"][0], rel=0.003)
    assert (tmp_path / "weights.safetensors").exists()


@pytest.mark.long
def test_a_process_that_fails_ends_all(workplace, tmp_path) -> None:
    process = start(workplace, tmp_path, 2, 1, FAIL_AT="7")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode and "out of memory" in printed
