"""Speed of our networks beside MONAI's, all in one run, and their Dice after equal time.

    python benchmarks/speed.py [--seconds 90 300] [--rates 1e-3 3e-3] [--compile] [--phantom]

Takes the slices that `dvc repro augment` left, or a phantom where there are none. Speeds are
measured in turns, round after round, so that noise of the machine hits all alike. Prints Markdown:

- GFLOP an image: of forward and backward pass, counted by PyTorch.
- train images/s: of steps on one batch already drawn; the median of the rounds. MONAI's networks
  run in both memory layouts and are shown in their faster one.
- step efficiency: FLOP/s of a training step over those of the fastest 3×3 convolution found.
- PyTorch ms, ONNX Runtime ms: for one image, the former in its faster layout.
- Dice: mean / micro of the validation slices, after equal seconds of training, one network after
  the other, drawing included, with the learning rate falling linearly to zero; with the best of
  `--rates`. The pretrained encoders start from ImageNet's weights.
"""

import argparse
import copy
import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from common import head, row
from monai.networks.nets import AttentionUnet
from monai.networks.nets import UNet as ResidualUnet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from tumorseg.core import environment
from tumorseg.core.experiments import EXPERIMENTS, apply, changes_of
from tumorseg.core.params import (
    NETWORKS,
    AugmentParams,
    CommonTrainParams,
    TrainParams,
    ValidateParams,
    load_params,
    read_document,
)
from tumorseg.data.arrays import ARRAYS, Slices, build_arrays, load_slices
from tumorseg.data.manifest import build_manifest
from tumorseg.data.phantom import make_phantom
from tumorseg.evaluation.metrics import dice
from tumorseg.registry.export import export_onnx
from tumorseg.training.augmentation import Policy, load_policy, save_policy
from tumorseg.training.datasets import Batch, EpochSampler, TrainingSlices, ValidationSlices
from tumorseg.training.encoders import EfficientNetLite0
from tumorseg.training.loss import bce_dice_loss
from tumorseg.training.networks import build_network
from tumorseg.training.segmenter import parameter_groups
from tumorseg.training.trainer import precision

warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # of the ONNX exporter
REFERENCE = "MONAI UNet"  # of which the others' speed is a multiple
SPLITS = ("train", "valid")
COLUMNS = (
    "network",
    "layout",
    "parameters M",
    "GFLOP an image",
    "train images/s (least–most)",
    f"of {REFERENCE}",
    "step efficiency",
    "PyTorch ms",
    "ONNX Runtime ms",
)
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
TITLES = {"unet": "our U-Net", "attention_unet": "our Attention U-Net"}
SETS = {"two_cores_plain": "", "two_cores": ", pretrained"}  # of experiments.yaml

Key = tuple[str, ...]


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


def rivals(params: Path) -> list[Rival]:
    """Our networks, plain and pretrained, and MONAI's residual and Attention U-Net."""
    ours = []
    for chosen, ending in SETS.items():
        document = read_document(params)
        for change in changes_of(chosen, Path(__file__).parents[1] / EXPERIMENTS):
            apply(change, document)
        trained = TrainParams.model_validate(document["train"])
        for name in NETWORKS:
            build = partial(build_network, name, trained.network(name))
            ours.append(Rival(TITLES[name] + ending, build, ("channels_last",)))
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

    common: CommonTrainParams
    device: torch.device
    bf16: bool
    compiled: bool

    def with_rate(self, rate: float) -> "Setting":
        """The same with another learning rate."""
        return replace(self, common=self.common.model_copy(update={"learning_rate": rate}))

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, where this run has it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def wait(self) -> None:
        """Returns once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Training:
    """A network with the loss and the optimiser that all have in common."""

    def __init__(self, network: nn.Module, layout: str, setting: Setting) -> None:
        self.setting, self.layout = setting, LAYOUTS[layout]
        self.network = network.to(setting.device, memory_format=self.layout).train()
        self.forward = torch.compile(self.network) if setting.compiled else self.network
        groups = parameter_groups(self.network, setting.common)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.rates = [group["lr"] for group in groups]

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


@dataclass(frozen=True)
class Course:
    """A training of so many seconds: what is drawn, and what is done besides the steps.

    Attributes:
        slices: `train` and `valid`.
        policy: The augmentation.
        batch: Slices a step.
        average: Decay a step of the moving average of weights that is scored; 0 for none.
    """

    slices: dict[str, Slices]
    policy: Policy
    batch: int
    average: float

    def batches(self) -> Iterator[Batch]:
        """Batches without end, as training draws them: in this process, a new order each epoch."""
        sampler = EpochSampler(len(self.slices["train"].images), seed=0)
        drawn = TrainingSlices(self.slices["train"], self.policy, seed=0)
        loader = DataLoader(drawn, self.batch, sampler=sampler, drop_last=True)

        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            yield from loader

    def run(self, rival: Rival, layout: str, setting: Setting, seconds: float) -> dict[str, float]:
        """Trains anew, the rate falling linearly to zero, and scores the validation slices.

        Args:
            rival: The network.
            layout: Of its weights and images.
            setting: How it is computed, and with which rates.
            seconds: The training's own time, drawing included.

        Returns:
            `mean` and `micro` Dice on the grid at a probability of 0.5, the learning `rate`, and
            `epochs` seen.
        """
        torch.manual_seed(0)
        network = rival.build()
        if isinstance(encoder := getattr(network, "encoder", None), EfficientNetLite0):
            encoder.load_pretrained(None)
        training = Training(network, layout, setting)
        scored: nn.Module = training.network
        if self.average:
            decayed = get_ema_multi_avg_fn(self.average)
            scored = AveragedModel(scored, multi_avg_fn=decayed, use_buffers=True)
        drawn = self.batches()
        training.loss(*next(drawn)[:2]).backward()  # compiles, without a step
        steps, started = 0, time.perf_counter()
        for images, masks, _ in drawn:
            elapsed = (time.perf_counter() - started) / seconds
            if elapsed >= 1:
                break
            for group, rate in zip(training.optimizer.param_groups, training.rates, strict=True):
                group["lr"] = rate * (1 - elapsed)
            training.step(images, masks)
            if self.average:
                scored.update_parameters(training.network)  # type: ignore[operator]
            setting.wait()
            steps += 1
        mean, micro = self.score(scored, training)
        epochs = steps * self.batch / len(self.slices["train"].images)
        rate = setting.common.learning_rate
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


@dataclass(frozen=True)
class Entry:
    """What takes turns: a step, and how many images, or FLOP, one step is."""

    step: Callable[[], object]
    units: float = 1


def take_turns(
    entries: dict[Key, Entry], rounds: int, seconds: float, wait: Callable[[], None]
) -> dict[Key, list[float]]:
    """Units a second of each entry in each round, after a turn that does not count."""
    steps = dict.fromkeys(entries, 1)
    rates: dict[Key, list[float]] = {key: [] for key in entries}
    for number in range(-1, rounds):
        for key, entry in entries.items():
            if number < 0:
                entry.step()  # allocates, chooses kernels, compiles
            wait()
            started = time.perf_counter()
            for _ in range(steps[key]):
                entry.step()
            wait()
            elapsed = time.perf_counter() - started
            if number < 0:
                steps[key] = max(1, round(seconds / elapsed))
            else:
                rates[key].append(steps[key] * entry.units / elapsed)
    return rates


def convolution(channels: int, side: int, batch: int, setting: Setting) -> Entry:
    """Forward and backward pass of one 3×3 convolution, in FLOP."""
    kind = {"device": setting.device, "dtype": torch.bfloat16 if setting.bf16 else torch.float32}
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **kind)
    layer = layer.to(memory_format=torch.channels_last)
    images = torch.randn(batch, channels, side, side, **kind)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(images)

    def step() -> None:
        torch.autograd.grad(layer(images), (layer.weight, images), gradient)

    return Entry(step, 3 * 2 * 9 * channels**2 * side**2 * batch)


def best_convolution(side: int, setting: Setting) -> tuple[str, Entry, float]:
    """The fastest layer of a sweep like a U-Net's levels: in words, as an entry, and its FLOP/s."""
    found = []
    for channels in (64, 128, 256, 512):
        for small in (side // 16, side // 8, side // 4):
            for batch in (16, 64) if setting.device.type == "cuda" else (2, 8):
                if channels * small > 64 * side:
                    continue
                entry = convolution(channels, small, batch, setting)
                rates = take_turns({(): entry}, 3, 0, setting.wait)[()]
                words = f"{channels} channels, {small}², batch {batch}"
                found.append((max(rates), words, entry))
    rate, words, entry = max(found, key=lambda one: one[0])
    return words, entry, rate


def inference(rival: Rival, side: int, setting: Setting, scratch: Path) -> dict[str, Entry]:
    """One image at a time: PyTorch in each layout, and ONNX Runtime on the CPU."""
    network = rival.build().eval()
    path = scratch / f"{rival.title}.onnx"
    export_onnx(network, side, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = torch.rand(1, 1, side, side)
    given = {"image": image.numpy()}
    entries = {"onnx": Entry(lambda: session.run(["probability"], given))}
    for name, layout in LAYOUTS.items():
        placed = copy.deepcopy(network).to(setting.device, memory_format=layout)
        shown = image.to(setting.device).contiguous(memory_format=layout)

        @torch.inference_mode()
        def step(placed: nn.Module = placed, shown: torch.Tensor = shown) -> None:
            with setting.autocast():
                placed(shown)

        entries[name] = Entry(step)
    return entries


def measure(
    chosen: argparse.Namespace, course: Course, setting: Setting, side: int, scratch: Path
) -> None:
    """Measures everything and prints the table and what it rests on."""
    networks = rivals(chosen.params)
    drawn = course.batches()
    images, masks, _ = next(drawn)
    words, layer, sweep = best_convolution(side, setting)
    training: dict[Key, Entry] = {
        ("convolution",): layer,
        ("drawing",): Entry(lambda: next(drawn), chosen.batch),
    }
    answering: dict[Key, Entry] = {}
    for rival in networks:
        for layout in rival.layouts:
            step = partial(Training(rival.build(), layout, setting).step, images, masks)
            training[rival.title, layout] = Entry(step, chosen.batch)
        for runtime, entry in inference(rival, side, setting, scratch).items():
            answering[rival.title, runtime] = entry
    trained = take_turns(training, chosen.rounds, chosen.turn, setting.wait)
    answered = take_turns(answering, chosen.rounds, chosen.turn / 6, setting.wait)
    peak = max(sweep, median(trained["convolution",]))

    def best_layout(rival: Rival) -> str:
        return max(rival.layouts, key=lambda layout: median(trained[rival.title, layout]))

    reference = next(trained[r.title, best_layout(r)] for r in networks if r.title == REFERENCE)
    after = [f"Dice after {seconds:g} s (epochs, rate)" for seconds in chosen.seconds]
    head(*COLUMNS, *after, numbers=len(COLUMNS) + len(after) - 2)
    for rival in networks:
        layout = best_layout(rival)
        parameters, flop = rival.size(side)
        rates = trained[rival.title, layout]
        eager = max(median(answered[rival.title, name]) for name in LAYOUTS)
        cells = [
            rival.title,
            layout,
            f"{parameters / 1e6:.2f}",
            f"{flop / 1e9:.2f}",
            f"{median(rates):.2f} ({min(rates):.2f}–{max(rates):.2f})",
            f"{median(a / b for a, b in zip(rates, reference, strict=True)):.2f}",
            f"{median(rates) * flop / peak:.1%}",
            f"{1000 / eager:.1f}",
            f"{1000 / median(answered[rival.title, 'onnx']):.1f}",
        ]
        for seconds in chosen.seconds:
            scores = [
                course.run(rival, layout, setting.with_rate(rate), seconds) for rate in chosen.rates
            ]
            top = max(scores, key=lambda one: one["mean"])
            shown = f"{top['mean']:.3f} / {top['micro']:.3f}"
            cells.append(f"{shown} ({top['epochs']:.1f}, {top['rate']:g})")
        row(*cells)
    drawing = median(trained["drawing",])
    ours = (f"{drawing / median(trained[r.title, best_layout(r)]):.1f}" for r in networks[:4])
    print(f"\nbest convolution, {words}: {peak / 1e9:.1f} GFLOP/s forward and backward")
    print(f"drawing alone: {drawing:.1f} images/s, {', '.join(ours)} times our trainings'")


def find_slices(chosen: argparse.Namespace, scratch: Path) -> tuple[dict[str, Slices], Policy, str]:
    """The arrays of the last run, or of a phantom; the policy; and in words what they are."""
    if ARRAYS.is_dir() and not chosen.phantom:
        slices = {split: load_slices(split) for split in SPLITS}
        return slices, load_policy(ARRAYS.with_name("policy.json")), "the data set's"
    count = chosen.phantom or 240
    data, folder = scratch / "data", scratch / "arrays"
    make_phantom(data, counts={"train": count, "valid": count // 4}, size=max(96, chosen.size))
    section = load_params(ValidateParams, chosen.params)
    table = build_manifest(data, section, scratch / "small.npy")
    build_arrays(table, data, chosen.size, folder)
    save_policy(load_params(AugmentParams, chosen.params), scratch / "policy.json")
    slices = {split: load_slices(split, folder) for split in SPLITS}
    return slices, load_policy(scratch / "policy.json"), "a phantom's"


def main() -> None:
    """Reads the options, finds the slices, measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=3, help="seconds of a turn of training")
    parser.add_argument("--seconds", type=float, nargs="+", default=[90], help="of training")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="best of these")
    parser.add_argument("--average", type=float, default=0, help="decay of averaged weights")
    parser.add_argument("--phantom", type=int, nargs="?", const=240, help="so many train slices")
    parser.add_argument("--size", type=int, default=256, help="side of the phantom, in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    chosen = parser.parse_args()
    os.environ |= environment.SILENT
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    common = load_params(TrainParams, chosen.params).common
    bf16 = precision(common) == "bf16-mixed"
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        slices, policy, whose = find_slices(chosen, scratch)
        side = slices["train"].images.shape[-1]
        print(
            f"{whose} slices, {side}², batch {chosen.batch}, {device.type}, "
            f"{chosen.threads} threads, {'bf16' if bf16 else 'float32'}, "
            f"{'compiled' if chosen.compile else 'eager'}, PyTorch {torch.__version__}\n"
        )
        course = Course(slices, policy, chosen.batch, chosen.average)
        measure(chosen, course, Setting(common, device, bf16, chosen.compile), side, scratch)


if __name__ == "__main__":
    main()
