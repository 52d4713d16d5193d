"""What training draws: slices in an order and with transformations that only the seed decides."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tumorseg.arrays import Slices
from tumorseg.augmentation import Policy
from tumorseg.preprocess import to_input

# (epoch, index): what the sampler hands to the data set.
Draw = tuple[int, int]
# Images and masks, float32, each (B, 1, S, S), and the slices' positions in their split, (B,).
Batch = tuple[Tensor, Tensor, Tensor]


class TrainingSlices(Dataset[tuple[Tensor, Tensor, int]]):
    """Slices as the network sees them in training: augmented, normalised, in float32.

    Item (epoch, index) depends on nothing but the seed, the epoch and the index, whatever the
    number of workers, the order, or how often training was interrupted.
    """

    def __init__(self, slices: Slices, policy: Policy, seed: int) -> None:
        self.slices, self.policy, self.seed = slices, policy, seed

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, int]:
        """Image and mask of one draw, float32, each (1, S, S), and its index."""
        epoch, index = draw
        seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
        image, mask = self.policy(
            np.array(self.slices.images[index]), np.array(self.slices.masks[index]), seed
        )
        return torch.from_numpy(to_input(image)), torch.from_numpy(mask)[None].float(), index


class ValidationSlices(Dataset[tuple[Tensor, Tensor, int]]):
    """Slices as they are, normalised."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Image and mask, float32, each (1, S, S), and the index."""
        image = torch.from_numpy(to_input(self.slices.images[index]))
        return image, torch.from_numpy(np.array(self.slices.masks[index]))[None].float(), index


class EpochSampler(Sampler[Draw]):
    """A new order each epoch, the same for every network that is trained with the same seed."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return ((self.epoch, int(index)) for index in order)
