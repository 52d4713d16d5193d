"""Training that is interrupted or poisoned."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tests.conftest import TINY_TRAIN, fit
from tumorseg.core.errors import InputError
from tumorseg.core.params import TrainParams
from tumorseg.training.segmenter import Segmenter
from tumorseg.training.trainer import train


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


SCHEDULES = {
    "plateau": {"plateau_patience": 1, "learning_rate": 0.05, "plateau_factor": 0.1},
    "one_cycle": {"weight_averaging": 0.9, "micro_batch_size": 2},
}


@pytest.fixture(scope="module", params=SCHEDULES)
def unbroken(request, workplace, tmp_path_factory) -> tuple[TrainParams, dict, Path]:
    """Eight epochs, in the seventh of which plateau acts, and what they come to."""
    common = SCHEDULES[request.param] | {"schedule": request.param}
    common |= {"epochs": 8, "early_stopping_patience": 9}
    given = TrainParams.model_validate(TINY_TRAIN | {"common": TINY_TRAIN["common"] | common})
    folder = tmp_path_factory.mktemp("unbroken")
    summary = fit(workplace, "attention_unet", given, folder)
    assert pd.read_csv(folder / "history.csv")["learning_rate"].nunique() > 1
    return given, summary, folder


@pytest.mark.parametrize("draws", [5, 90])
def test_an_interrupted_training_comes_to_the_same_weights(
    workplace, unbroken, tmp_path, draws
) -> None:
    params, whole, folder = unbroken
    calls = []

    def killer(image, mask, seed):
        calls.append(seed)
        if len(calls) == draws:
            raise Killed
        return workplace["policy"](image, mask, seed)

    broken = tmp_path / "broken"
    given = ("attention_unet", 0, params, workplace["slices"])
    with pytest.raises(Killed):
        train(*given, killer, broken, broken / "unfinished")
    assert not (broken / "weights.safetensors").exists()
    again = train(*given, killer, broken, broken / "unfinished")
    unequal = {key for key in whole if whole[key] != again[key]}
    assert unequal <= {"images_per_second", "seconds"}
    assert len(calls) == 8 * 12 + draws - 12 * ((draws - 1) // 12)  # only the epoch at hand is lost
    for name in ("weights.safetensors", "history.csv"):
        assert (broken / name).read_bytes() == (folder / name).read_bytes()
    # Cut off after its last epoch, it has nothing more to do.
    count = len(calls)
    finished = train(*given, killer, broken, broken / "unfinished")
    assert len(calls) == count
    assert finished["weights_digest"] == whole["weights_digest"]
    assert finished["best_epoch"] == whole["best_epoch"]


def test_a_kill_while_a_checkpoint_is_written_loses_an_epoch(
    workplace, unbroken, tmp_path, monkeypatch
) -> None:
    params, whole, _ = unbroken
    save, saved = TorchCheckpointIO.save_checkpoint, []

    def cut_off(self, checkpoint, path, storage_options=None):
        saved.append(path)
        save(self, checkpoint, path, storage_options)
        if len(saved) == 4:
            path.write_bytes(path.read_bytes()[:1000])
            raise Killed

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", cut_off)
    with pytest.raises(Killed):
        fit(workplace, "attention_unet", params, tmp_path)
    again = fit(workplace, "attention_unet", params, tmp_path)
    assert again["weights_digest"] == whole["weights_digest"]
    assert len(saved) == 4 + 5  # the fourth epoch once more
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["last.ckpt"]


def test_a_loss_that_is_no_number_names_the_batch(workplace, train_params, tmp_path) -> None:
    images = np.array(workplace["slices"]["train"].images)

    def poison(image, mask, seed):
        return image, mask.astype(np.float32) * (np.nan if np.array_equal(image, images[7]) else 1)

    with pytest.raises(InputError, match=r"epoch 1, batch \d: the loss is nan.*rows \[.*7.*\]"):
        train("unet", 0, train_params, workplace["slices"], poison, tmp_path, tmp_path / "c")


def test_weights_that_break_in_an_epoch_s_last_step_are_no_result(
    workplace, train_params, tmp_path, monkeypatch
) -> None:
    original = Segmenter.validation_step

    def poisoned(self, batch, number):
        original(self, batch, number)
        self.sums[0] = float("nan")

    monkeypatch.setattr(Segmenter, "validation_step", poisoned)
    with pytest.raises(InputError, match="epoch 1: the validation loss is nan; lower"):
        fit(workplace, "unet", train_params, tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_patience_that_ran_out_before_a_kill_stays_out(
    workplace, train_params, tmp_path, monkeypatch
) -> None:
    computed = Segmenter.loss

    def level(self, batch):
        """A validation loss that never falls."""
        logits, loss = computed(self, batch)
        return logits, loss if self.training else loss * 0 + 1

    monkeypatch.setattr(Segmenter, "loss", level)
    changes = {"epochs": 9, "early_stopping_patience": 2}
    params = train_params.model_copy(
        update={"common": train_params.common.model_copy(update=changes)}
    )
    whole = fit(workplace, "unet", params, tmp_path)
    again = fit(workplace, "unet", params, tmp_path)
    assert whole["epochs"] == again["epochs"] == 3
    assert whole["weights_digest"] == again["weights_digest"]
