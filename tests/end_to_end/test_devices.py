"""Several processes train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY_TRAIN, fit
from tumorseg.core.errors import InputError
from tumorseg.core.params import CommonTrainParams, TrainParams
from tumorseg.training import trainer
from tumorseg.training.datasets import EpochSampler


def common(**changes: object) -> CommonTrainParams:
    return CommonTrainParams.model_validate(TINY_TRAIN["common"] | changes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"batch_size": 16, "micro_batch_size": 32}, (16, 1)),
        ({"batch_size": 16, "micro_batch_size": 4}, (4, 4)),
        ({"batch_size": 16, "micro_batch_size": 4, "devices": 2}, (4, 2)),
        ({"batch_size": 16, "micro_batch_size": 4, "devices": 2, "nodes": 2}, (4, 1)),
    ],
)
def test_the_effective_batch_stays(given: dict, expected: tuple[int, int]) -> None:
    params = common(**given)
    at_once, passes = trainer.micro_batches(params)
    assert (at_once, passes) == expected
    assert at_once * passes * params.devices * params.nodes == 16


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_slices_are_dealt_out_without_loss(processes: int) -> None:
    dealt = [[i for _, i in EpochSampler(50, 3, rank, processes)] for rank in range(processes)]
    assert len({len(hand) for hand in dealt}) == 1  # else one would wait for ever
    assert set().union(*dealt) == set(range(50))
    assert sum(map(len, dealt)) - 50 < processes
    alone = [i for _, i in EpochSampler(50, 3)]
    batch = [i for hand in dealt for i in hand[: 12 // processes]]
    assert sorted(batch) == sorted(alone[:12])
    second = EpochSampler(50, 3)
    second.set_epoch(1)
    assert sorted(i for _, i in second) == list(range(50)) != [i for _, i in second]
    assert [i for _, i in second] != alone and {epoch for epoch, _ in second} == {1}


def test_a_last_step_of_several_passes_is_the_mean_of_its_slices_too(workplace, tmp_path) -> None:
    # 12 slices in steps of 8: the last step has four, in one pass of four or two of two.
    changes = {"batch_size": 8, "epochs": 1, "dice_over": "slice"}
    weights = []
    for at_once in (8, 2):
        given = TINY_TRAIN["common"] | changes | {"micro_batch_size": at_once}
        network = TINY_TRAIN["unet"] | {"norm": "instance"}
        params = TrainParams.model_validate(TINY_TRAIN | {"common": given, "unet": network})
        fit(workplace, "unet", params, tmp_path / str(at_once))
        weights.append(load_file(tmp_path / str(at_once) / "weights.safetensors"))
    first, second = weights
    # Gradients further down are so small that Adam makes much of their rounding.
    upper = [name for name in first if name.startswith(("decoders", "upsamplers", "head"))]
    assert upper and all(torch.allclose(first[n], second[n], atol=1e-5) for n in upper)


def test_nodes_without_an_address_are_named(workplace, train_params, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    several = train_params.model_copy(update={"common": common(nodes=2)})
    with pytest.raises(InputError, match=r"nodes is 2: .* MASTER_ADDR .* NODE_RANK"):
        fit(workplace, "unet", several, tmp_path)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_further_processes_do_not_run_the_flow(name, monkeypatch) -> None:
    for number, first in (("0", True), ("1", False)):
        monkeypatch.setenv(name, number)
        assert trainer.is_first_process() is first


@pytest.mark.gpu
def test_a_gpu_trains_in_bf16(workplace, tmp_path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU; run `pytest -m gpu` on a machine with one")
    given = TINY_TRAIN | {"common": TINY_TRAIN["common"] | {"precision": "auto"}}
    summary = fit(workplace, "attention_unet", TrainParams.model_validate(given), tmp_path)
    assert summary["device"].startswith("cuda") and summary["val_loss"] < 5
    assert (summary["precision"] == "bf16-mixed") == torch.cuda.is_bf16_supported(False)


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


@pytest.fixture(scope="module")
def runs(workplace, tmp_path_factory) -> dict[str, Path]:
    """The same training alone, on two devices (gloo), and on two nodes of one device each."""
    made = {}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, devices, nodes in (("alone", 1, 1), ("devices", 2, 1), ("nodes", 1, 2)):
        out = made[name] = tmp_path_factory.mktemp(name)
        variables = [meeting | {"NODE_RANK": str(n)} for n in range(nodes)] if nodes > 1 else [{}]
        started = [start(workplace, out, devices, nodes, **given) for given in variables]
        for process in started:
            printed, _ = process.communicate(timeout=300)
            assert process.returncode == 0, printed[-4000:]
    return made


def read(folder: Path) -> tuple[list[int], dict]:
    """All draws of all processes, and the summary of the first."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    return [seed for seeds, _ in found for seed in seeds], found[0][1]


@pytest.mark.parametrize("kind", ["devices", "nodes"])
def test_two_processes_draw_what_one_draws(runs, kind) -> None:
    (alone, _), (together, summary) = read(runs["alone"]), read(runs[kind])
    assert len(list(runs[kind].glob("rank-*.json"))) == summary["processes"] == 2
    assert sorted(alone) == sorted(together)


@pytest.mark.parametrize("kind", ["devices", "nodes"])
def test_two_processes_come_to_about_the_same(runs, kind) -> None:
    # Adam makes much of small gradients' rounding, so the weights themselves are not compared.
    alone, together = (pd.read_csv(runs[name] / "history.csv") for name in ("alone", kind))
    for figure in ("train_loss", "val_loss"):
        assert together[figure].tolist() == pytest.approx(alone[figure].tolist(), rel=0.02), figure
    assert together["train_loss"][0] == pytest.approx(alone["train_loss"][0], rel=0.003)
    assert (runs[kind] / "weights.safetensors").exists()


def test_a_process_that_fails_ends_all(workplace, tmp_path) -> None:
    process = start(workplace, tmp_path, 2, 1, FAIL_AT="7")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode and "out of memory" in printed
