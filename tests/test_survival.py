"""Training that is interrupted, starved or poisoned."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import SafetensorError

from tests.conftest import TINY_TRAIN, fit
from tumorseg.core.errors import InputError
from tumorseg.core.params import TrainParams
from tumorseg.training.checkpoints import WholeFiles
from tumorseg.training.segmenter import Segmenter
from tumorseg.training.trainer import train


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


SCHEDULES = {
    "plateau": {"plateau_patience": 1, "learning_rate": 0.05, "plateau_factor": 0.1},
    "one_cycle": {"weight_averaging": 0.9, "most_at_once": 2},
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


@pytest.mark.parametrize("draws", [5, 30, 90])
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


def cut(data: bytes) -> bytes:
    return data[:1000]


def empty(_: bytes) -> bytes:
    return b""


def flip(data: bytes) -> bytes:
    """Changes one bit in the largest tensor, which loading does not notice."""
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("spoil", [cut, empty, flip])
def test_a_damaged_checkpoint_loses_only_an_epoch(
    workplace, unbroken, tmp_path, capsys, spoil
) -> None:
    params, _, folder = unbroken
    calls = []

    def killer(image, mask, seed):
        calls.append(seed)
        if len(calls) == 40:
            raise Killed
        return workplace["policy"](image, mask, seed)

    slices, unfinished = workplace["slices"], tmp_path / "unfinished"
    given = ("attention_unet", 0, params, slices, killer, tmp_path, unfinished)
    with pytest.raises(Killed):
        train(*given)
    last = unfinished / "epoch=2.ckpt"
    last.write_bytes(spoil(last.read_bytes()))
    train(*given)
    assert "epoch=2.ckpt: is damaged" in capsys.readouterr().out
    files = [where / "weights.safetensors" for where in (folder, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


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


def test_a_full_disk_is_named(workplace, train_params, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "c"))

    monkeypatch.setattr("lightning.Trainer.save_checkpoint", full)
    with pytest.raises(InputError, match=r"No space left on device.*make room"):
        fit(workplace, "unet", train_params, tmp_path)


def test_a_checkpoint_without_room_is_not_pytorchs_riddle(tmp_path, monkeypatch) -> None:
    class Full(io.FileIO):
        def write(self, data) -> int:
            if self.tell() + len(data) > 500:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, mode))
    with pytest.raises(OSError, match="No space left"):
        WholeFiles().save_checkpoint({"weights": torch.zeros(10**6)}, tmp_path / "epoch=1.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_very_end_is_named_too(
    workplace, train_params, tmp_path, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tumorseg.training.trainer.save_file", full)
        with pytest.raises(InputError, match=r"No space left on device.*make room and type"):
            fit(workplace, "unet", train_params, tmp_path)
    (tmp_path / "history.csv").unlink()  # it lay on the full disk, too
    assert fit(workplace, "unet", train_params, tmp_path)["epochs"] == 2
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2
