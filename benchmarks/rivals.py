"""What benchmarks/speed.py measures: our networks and MONAI's, trained alike."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.networks.nets import AttentionUnet
from monai.networks.nets import UNet as ResidualUnet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from tumorseg.core.params import NETWORKS, TrainParams
from tumorseg.data.arrays import Slices
from tumorseg.evaluation.metrics import dice
from tumorseg.training.augmentation import Policy
from tumorseg.training.datasets import Batch, EpochSampler, TrainingSlices, ValidationSlices
from tumorseg.training.loss import bce_dice_loss
from tumorseg.training.networks import build_network

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
TITLES = {"unet": "our U-Net", "attention_unet": "our Attention U-Net"}
REFERENCE = "MONAI UNet"  # of which the others' speed is a multiple


@dataclass(frozen=True)
class Rival:
    """A network by its title, how to build it, and the memory layouts it is tried in."""

    title: str
    build: Callable[[], nn.Module]
    layouts: tuple[str, ...]

    def size(self, side: int) -> tuple[int, int]:
        """Parameters, and FLOP of forward and backward pass for one image, without computing."""
        with torch.device("meta"):
            network, image = self.build(), torch.zeros(1, 1, side, side)
        with FlopCounterMode(display=False) as counter:
            network(image).sum().backward()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return parameters, counter.get_total_flops()


def rivals(params: TrainParams) -> list[Rival]:
    """Our two networks as params.yaml has them, and MONAI's residual and Attention U-Net."""
    ours = [
        Rival(TITLES[name], partial(build_network, name, params.network(name)), ("channels_last",))
        for name in NETWORKS
    ]
    shape: dict[str, Any] = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "channels": (32, 64, 128, 256, 512),
        "strides": (2, 2, 2, 2),
    }
    theirs = {
        REFERENCE: partial(ResidualUnet, **shape, num_res_units=2),
        "MONAI AttentionUnet": partial(AttentionUnet, **shape),
    }
    return ours + [
        Rival(title, partial(_expecting_little, build), tuple(LAYOUTS))
        for title, build in theirs.items()
    ]


def _expecting_little(build: Callable[[], nn.Module]) -> nn.Module:
    """Builds a network that starts from a small probability of tumour, as ours do."""
    network = build()
    *_, last = (p for name, p in network.named_parameters() if name.endswith("bias"))
    nn.init.constant_(last, -4.0)
    return network


@dataclass(frozen=True)
class Setting:
    """How everything in one run is computed."""

    device: torch.device
    bf16: bool
    compiled: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, where this run has it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def wait(self) -> None:
        """Returns once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Training:
    """A network with the loss and the optimiser that all have in common."""

    def __init__(self, network: nn.Module, layout: str, setting: Setting, rate: float) -> None:
        self.setting, self.layout = setting, LAYOUTS[layout]
        self.network = network.to(setting.device, memory_format=self.layout).train()
        self.forward = torch.compile(self.network) if setting.compiled else self.network
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=rate, fused=True)

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """The loss of one batch, float32, each (B, 1, S, S)."""
        images = images.to(self.setting.device).contiguous(memory_format=self.layout)
        with self.setting.autocast():
            logits = self.forward(images)
        return bce_dice_loss(logits.float(), masks.to(self.setting.device).float())

    def step(self, images: Tensor, masks: Tensor) -> None:
        """One optimiser step."""
        self.optimizer.zero_grad()
        self.loss(images, masks).backward()
        self.optimizer.step()

    def warm_up(self, images: Tensor, masks: Tensor) -> None:
        """Compiles, where this run does, without a step."""
        self.loss(images, masks).backward()
        self.optimizer.zero_grad()


@dataclass(frozen=True)
class Course:
    """A training of so many seconds: what is drawn, and what is done besides the steps.

    Attributes:
        slices: `train` and `valid`.
        policy: The augmentation.
        batch: Slices a step.
        seconds: The training's own time, drawing included.
        average: Decay a step of the moving average of weights that is scored; 0 for none.
    """

    slices: dict[str, Slices]
    policy: Policy
    batch: int
    seconds: float
    average: float

    def batches(self) -> Iterator[Batch]:
        """Batches without end, as training draws them: in this process, a new order each epoch."""
        sampler = EpochSampler(len(self.slices["train"].images), seed=0)
        drawn = TrainingSlices(self.slices["train"], self.policy, seed=0)
        loader = DataLoader(drawn, self.batch, sampler=sampler, drop_last=True)

        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            yield from loader

    def run(self, rival: Rival, layout: str, setting: Setting, rate: float) -> dict[str, float]:
        """Trains anew, the rate falling linearly to zero, and scores the validation slices.

        Returns:
            `mean` and `micro` Dice on the grid at a probability of 0.5, the learning `rate`, and
            `epochs` seen.
        """
        torch.manual_seed(0)
        training = Training(rival.build(), layout, setting, rate)
        scored: nn.Module = training.network
        if self.average:
            decayed = get_ema_multi_avg_fn(self.average)
            scored = AveragedModel(scored, multi_avg_fn=decayed, use_buffers=True)
        drawn = self.batches()
        training.warm_up(*next(drawn)[:2])
        steps, started = 0, time.perf_counter()
        for images, masks, _ in drawn:
            elapsed = (time.perf_counter() - started) / self.seconds
            if elapsed >= 1:
                break
            for group in training.optimizer.param_groups:
                group["lr"] = rate * (1 - elapsed)
            training.step(images, masks)
            if self.average:
                scored.update_parameters(training.network)  # type: ignore[operator]
            setting.wait()
            steps += 1
        mean, micro = self.score(scored, training)
        epochs = steps * self.batch / len(self.slices["train"].images)
        return {"mean": mean, "micro": micro, "rate": rate, "epochs": epochs}

    @torch.inference_mode()
    def score(self, network: nn.Module, training: Training) -> tuple[float, float]:
        """Mean and micro Dice of the validation slices."""
        network.eval()
        right, wrong = [], []
        for images, masks, _ in DataLoader(ValidationSlices(self.slices["valid"]), self.batch):
            images = images.to(training.setting.device).contiguous(memory_format=training.layout)
            with training.setting.autocast():
                hard, truth = network(images).cpu() > 0, masks > 0.5
            right += (hard & truth).sum((1, 2, 3)).tolist()
            wrong += (hard ^ truth).sum((1, 2, 3)).tolist()
        return float(dice(right, wrong).mean()), float(dice(np.sum(right), np.sum(wrong)))
