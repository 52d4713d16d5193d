"""Several processes train as one does, and what they are told follows from params."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

from tests.conftest import REPOSITORY, TINY_TRAIN, fit
from tumorseg.core.errors import InputError
from tumorseg.core.params import CommonTrainParams, TrainParams
from tumorseg.training import devices
from tumorseg.training.datasets import EpochSampler


def common(**changes: object) -> CommonTrainParams:
    return CommonTrainParams.model_validate(TINY_TRAIN["common"] | changes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"batch_size": 16, "most_at_once": 32}, (16, 1)),
        ({"batch_size": 16, "most_at_once": 4}, (4, 4)),
        ({"batch_size": 16, "most_at_once": 4, "devices": 2}, (4, 2)),
        ({"batch_size": 16, "most_at_once": 4, "devices": 2, "nodes": 2}, (4, 1)),
    ],
)
def test_the_effective_batch_stays(given: dict, expected: tuple[int, int]) -> None:
    params = common(**given)
    at_once, steps = devices.share(params)
    assert (at_once, steps) == expected
    assert at_once * steps * devices.world(params) == 16
    assert devices.trainer_options(params)["accumulate_grad_batches"] == steps


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_slices_are_dealt_out_without_loss(processes: int) -> None:
    dealt = [[i for _, i in EpochSampler(50, 3, rank, processes)] for rank in range(processes)]
    assert len({len(hand) for hand in dealt}) == 1  # else one would wait for ever
    assert set().union(*dealt) == set(range(50))
    assert sum(map(len, dealt)) - 50 < processes
    alone = [i for _, i in EpochSampler(50, 3)]
    batch = [i for hand in dealt for i in hand[: 12 // processes]]
    assert sorted(batch) == sorted(alone[:12])


def test_the_processor_is_named() -> None:
    assert str(os.cpu_count()) in devices.hardware()


def test_a_last_step_of_several_passes_is_the_mean_of_its_slices_too(workplace, tmp_path) -> None:
    # 12 slices in steps of 8: the last step has four, in one pass of four or two of two.
    changes = {"batch_size": 8, "epochs": 1, "dice_over": "slice"}
    weights = []
    for at_once in (8, 2):
        given = TINY_TRAIN["common"] | changes | {"most_at_once": at_once}
        network = TINY_TRAIN["unet"] | {"norm": "instance"}
        params = TrainParams.model_validate(TINY_TRAIN | {"common": given, "unet": network})
        fit(workplace, "unet", params, tmp_path / str(at_once))
        weights.append(load_file(tmp_path / str(at_once) / "weights.safetensors"))
    first, second = weights
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_more_gpus_than_there_are_is_named(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError, match=r"devices is 2, but there are 1 GPUs"):
        devices.launch(common(devices=2), ["python"])


def test_nodes_that_do_not_meet_are_named(monkeypatch) -> None:
    def absent(*_: object) -> object:
        def wait(*_: object) -> None:
            raise RendezvousTimeoutError("too few")

        return wait

    monkeypatch.setattr(devices, "elastic_launch", absent)
    with pytest.raises(InputError, match="2 nodes did not meet at localhost:29400"):
        devices.launch(common(nodes=2), ["python"])


@pytest.mark.gpu
def test_a_gpu_trains_in_bf16(workplace, tmp_path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU; run `pytest -m gpu` on a machine with one")
    given = TINY_TRAIN | {"common": TINY_TRAIN["common"] | {"precision": "auto"}}
    summary = fit(workplace, "attention_unet", TrainParams.model_validate(given), tmp_path)
    assert summary["device"].startswith("cuda") and summary["val_loss"] < 5
    assert (summary["precision"] == "bf16-mixed") == torch.cuda.is_bf16_supported(False)


WORKER = """
import json, sys
from pathlib import Path
import numpy as np
from tumorseg.training import devices
from tumorseg.data.arrays import load_slices
from tumorseg.training.augmentation import load_policy
from tumorseg.core.params import TrainParams
from tumorseg.training.trainer import train

work, out, given = sys.argv[1:]
params = TrainParams.model_validate(json.loads(given))
if not devices.launched(params.common):
    sys.exit(devices.launch(params.common, [sys.executable, *sys.argv]))
seen = []
policy = load_policy(Path(work, "policy.json"))
def spy(image, mask, seed):
    seen.append(seed)
    return policy(image, mask, seed)
slices = {s: load_slices(s, Path(work, "arrays")) for s in ("train", "valid")}
summary = train("attention_unet", 0, params, slices, spy, Path(out), Path(out, "unfinished"))
Path(out, f"rank-{devices.rank()}.json").write_text(json.dumps([seen, summary]))
"""


@pytest.fixture(scope="module")
def runs(workplace, tmp_path_factory) -> dict[int, Path]:
    """The same training in one process and in two (gloo), as `pipelines.train` starts them."""
    made = {}
    for count in (1, 2):
        out = tmp_path_factory.mktemp(f"processes-{count}")
        (out / "worker.py").write_text(WORKER)
        # Batch normalisation and the Dice of a batch see each process's share only; without them
        # the sum of two gradients is the gradient.
        changes = {"devices": count, "epochs": 3, "dice_weight": 0.0}
        gated = TINY_TRAIN["attention_unet"] | {"norm": "instance"}
        given = TINY_TRAIN | {"common": TINY_TRAIN["common"] | changes, "attention_unet": gated}
        command = [str(out / "worker.py"), str(workplace["folder"]), str(out), json.dumps(given)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        made[count] = out
    return made


def read(folder: Path) -> tuple[list[int], dict]:
    """All draws of all processes, and the summary of the first."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    return [seed for seeds, _ in found for seed in seeds], found[0][1]


def test_two_processes_draw_what_one_draws(runs) -> None:
    (alone, _), (together, summary) = read(runs[1]), read(runs[2])
    assert len(list(runs[2].glob("rank-*.json"))) == summary["processes"] == 2
    assert sorted(alone) == sorted(together)


def test_two_processes_come_to_about_the_same(runs) -> None:
    # Adam makes much of small gradients' rounding, so the weights themselves are not compared.
    alone, together = (pd.read_csv(runs[n] / "history.csv") for n in (1, 2))
    for figure in ("train_loss", "val_loss"):
        assert together[figure].tolist() == pytest.approx(alone[figure].tolist(), rel=0.02), figure
    assert together["train_loss"][0] == pytest.approx(alone["train_loss"][0], rel=0.003)
    files = {path.name for path in runs[2].iterdir()}
    assert "weights.safetensors" in files
