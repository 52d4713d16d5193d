"""Measuring in turns, so that noise of the machine hits all alike; and its best convolution."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rivals import Setting
from torch import nn

Key = tuple[str, ...]


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
