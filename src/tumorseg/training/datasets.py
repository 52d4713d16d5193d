"""Data sets and sampler of training; order and augmentation follow from the seed alone."""

import os
from collections.abc import Iterator
from multiprocessing.context import ForkContext, ForkProcess

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tumorseg.data.arrays import Slices
from tumorseg.imaging.preprocess import to_input
from tumorseg.training.augmentation import Policy

# (epoch, index): what the sampler hands to the data set.
Draw = tuple[int, int]
# Images, float32, and masks, uint8, each (B, 1, S, S); the slices' positions in their split, (B,).
Batch = tuple[Tensor, Tensor, Tensor]


class TrainingSlices(Dataset[tuple[Tensor, Tensor, int]]):
    """Augmented, normalised slices; item (epoch, index) depends only on seed, epoch and index."""

    def __init__(self, slices: Slices, policy: Policy, seed: int) -> None:
        self.slices, self.policy, self.seed = slices, policy, seed

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, int]:
        """Image, float32, and mask, uint8, of one draw, each (1, S, S), and its index."""
        epoch, index = draw
        seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
        image, mask = self.policy(
            np.array(self.slices.images[index]), np.array(self.slices.masks[index]), seed
        )
        return torch.from_numpy(to_input(image)), torch.from_numpy(mask)[None], index


class ValidationSlices(Dataset[tuple[Tensor, Tensor, int]]):
    """Slices as they are, normalised."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Image, float32, and mask, uint8, each (1, S, S), and the index."""
        image = torch.from_numpy(to_input(self.slices.images[index]))
        return image, torch.from_numpy(np.array(self.slices.masks[index]))[None], index


class EpochSampler(Sampler[Draw]):
    """A new order each epoch, the same for every network that is trained with the same seed.

    Process r of n takes every n-th slice from the r-th on, so that the batches of a step together
    are a single process's batch; the order is padded with its first slices to a multiple of n.

    Args:
        length: Number of slices.
        seed: Of the orders.
        rank: This process's number.
        processes: How many train together.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.length, self.seed, self.epoch = length, seed, 0
        self.rank, self.processes = rank, processes

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.processes)

    def __iter__(self) -> Iterator[Draw]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        filled = np.resize(order, len(self) * self.processes)
        return ((self.epoch, int(index)) for index in filled[self.rank :: self.processes])


class LoaderProcess(ForkProcess):
    """A worker of the data loader; it leaves without the exit handlers of the process it is from.

    Those of Prefect fail in a fork and would end each worker of a flow with status 1, which the
    loader takes for a failure of the training that just ended.
    """

    def run(self) -> None:
        """Loads until the loader has no more to ask for."""
        super().run()
        os._exit(0)


class LoaderContext(ForkContext):
    """How the data loader starts its workers: forked, so that all read the same mapped arrays."""

    Process = LoaderProcess
