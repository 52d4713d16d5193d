"""Training of one network: data, Lightning module, callbacks, and the best weights as a file."""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import Logger
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tumorseg.arrays import Slices
from tumorseg.augmentation import Policy
from tumorseg.errors import InputError
from tumorseg.files import atomic_path
from tumorseg.loss import bce_dice_loss
from tumorseg.metrics import dice
from tumorseg.networks import UNet, build_network
from tumorseg.params import TrainParams
from tumorseg.preprocess import to_input

# Lightning advertises other products on each start; its warnings about our choices stay.
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")

# (epoch, index): what the sampler hands to the data set.
Draw = tuple[int, int]


class TrainingSlices(Dataset[tuple[Tensor, Tensor]]):
    """Slices as the network sees them in training: augmented, normalised, in float32.

    Item (epoch, index) depends on nothing but the seed, the epoch and the index, whatever the
    number of workers or the order.
    """

    def __init__(self, slices: Slices, policy: Policy, seed: int) -> None:
        self.slices, self.policy, self.seed = slices, policy, seed

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Image and mask of one draw, float32, each (1, S, S)."""
        epoch, index = draw
        seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
        image, mask = self.policy(
            np.array(self.slices.images[index]), np.array(self.slices.masks[index]), seed
        )
        return torch.from_numpy(to_input(image)), torch.from_numpy(mask)[None].float()


class ValidationSlices(Dataset[tuple[Tensor, Tensor]]):
    """Slices as they are, normalised."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and mask, float32, each (1, S, S)."""
        image = torch.from_numpy(to_input(self.slices.images[index]))
        return image, torch.from_numpy(np.array(self.slices.masks[index]))[None].float()


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


class Segmenter(lightning.LightningModule):
    """A network with its loss, optimiser, schedule and validation figures."""

    def __init__(self, network: UNet, params: TrainParams) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.params = params.common

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits and loss of one batch."""
        images, masks = batch
        logits = self.network(images.contiguous(memory_format=torch.channels_last))
        common = self.params
        return logits, bce_dice_loss(logits, masks, common.bce_weight, common.dice_weight)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One optimiser step."""
        loss = self.loss(batch)[1]
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Loss and hard mean Dice at 0.5, on the grid."""
        logits, loss = self.loss(batch)
        hard, truth = logits > 0, batch[1] > 0.5
        positive, negative = (hard & truth).sum((1, 2, 3)), (hard ^ truth).sum((1, 2, 3))
        score = dice(positive.cpu().numpy(), negative.cpu().numpy()).mean()
        size = len(batch[0])
        self.log("val_loss", loss, prog_bar=True, batch_size=size)
        self.log("val_dice", float(score), prog_bar=True, batch_size=size)

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam, its rate reduced when the validation loss stops falling."""
        common = self.params
        optimizer = torch.optim.Adam(self.network.parameters(), lr=common.learning_rate)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=common.plateau_factor,
            patience=common.plateau_patience,
            min_lr=common.minimum_learning_rate,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"},
        }


class History(callbacks.Callback):
    """Keeps one row an epoch, prints it, and rewrites the CSV that `dvc plots` reads."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, float]]()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning once training and validation figures of an epoch are in."""
        row = {"epoch": trainer.current_epoch + 1}
        row |= {name: round(float(value), 5) for name, value in trainer.callback_metrics.items()}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append(row)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
        with atomic_path(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)


def train(
    name: str,
    params: TrainParams,
    slices: dict[str, Slices],
    policy: Policy,
    folder: Path,
    logger: Logger | None = None,
    progress_bar: bool = False,
) -> dict[str, Any]:
    """Trains one network and writes its best weights.

    Args:
        name: `unet` or `attention_unet`.
        params: The train section.
        slices: `train` and `valid`.
        policy: The augmentation, applied anew to every slice in every epoch.
        folder: Receives `weights.safetensors` (of the epoch with the lowest validation loss) and
            `history.csv` (a row an epoch).
        logger: Where Lightning also reports each epoch, such as MLflow.
        progress_bar: Whether to draw one; it suits a terminal, not a log.

    Returns:
        A summary: parameters, epochs, best epoch and its figures, images per second, device.

    Raises:
        InputError: A split has no slice.
    """
    for split in ("train", "valid"):
        if not len(slices[split].images):
            raise InputError(f"data/{split}: has no usable image; training needs some")
    common = params.common
    lightning.seed_everything(common.seed, workers=True, verbose=False)
    module = Segmenter(build_network(name, params.network(name)), params)
    loaders = [
        DataLoader(
            TrainingSlices(slices["train"], policy, common.seed),
            batch_size=common.batch_size,
            sampler=EpochSampler(len(slices["train"].images), common.seed),
            num_workers=common.workers,
        ),
        DataLoader(
            ValidationSlices(slices["valid"]),
            batch_size=common.batch_size,
            num_workers=common.workers,
        ),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    history = History(folder / "history.csv")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
        best = callbacks.ModelCheckpoint(checkpoints, "best", monitor="val_loss")
        trainer = lightning.Trainer(
            max_epochs=common.epochs,
            deterministic=common.deterministic,
            logger=logger or False,
            callbacks=[
                best,
                callbacks.EarlyStopping("val_loss", patience=common.early_stopping_patience),
                history,
                *([callbacks.TQDMProgressBar(leave=False)] if progress_bar else []),
            ],
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        trainer.fit(module, *loaders)
        seconds = time.monotonic() - started
        state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    module.load_state_dict(state)
    weights = {key: value.contiguous().cpu() for key, value in module.network.state_dict().items()}
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file(weights, temporary)
    chosen = min(history.rows, key=lambda row: row["val_loss"])
    return {
        "network": name,
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "epochs": len(history.rows),
        "best_epoch": chosen["epoch"],
        "val_loss": chosen["val_loss"],
        "val_dice": chosen["val_dice"],
        "images_per_second": round(len(history.rows) * len(slices["train"].images) / seconds, 2),
        "device": str(trainer.strategy.root_device),
    }
