"""The division of batches and slices over devices and nodes."""

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
