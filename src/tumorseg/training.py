"""Training of one network: Lightning module, callbacks, and the best weights as a file.

Whoever kills it at any moment loses the epoch at hand: it resumes from the last one's end and
comes to the same weights.
"""

import logging
import shutil
import time
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import Logger
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from tumorseg.arrays import Slices
from tumorseg.augmentation import Policy
from tumorseg.draws import Batch, EpochSampler, TrainingSlices, ValidationSlices
from tumorseg.errors import InputError
from tumorseg.files import atomic_path
from tumorseg.loss import bce_dice_loss
from tumorseg.metrics import dice
from tumorseg.networks import UNet, build_network
from tumorseg.params import TrainParams

# Lightning advertises other products on each start; its warnings about our choices stay.
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
warnings.filterwarnings("ignore", message=".*exists and is not empty.*")


class Segmenter(lightning.LightningModule):
    """A network with its loss, optimiser, schedule and validation figures."""

    def __init__(self, network: UNet, params: TrainParams) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.params = params.common

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and loss of one batch."""
        images, masks, _ = batch
        logits = self.network(images.contiguous(memory_format=torch.channels_last))
        common = self.params
        return logits, bce_dice_loss(logits, masks, common.bce_weight, common.dice_weight)

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """One optimiser step.

        Raises:
            InputError: The loss is not a number; the message names the batch.
        """
        loss = self.loss(batch)[1]
        if not torch.isfinite(loss):
            raise InputError(
                f"epoch {self.current_epoch + 1}, batch {number + 1}: the loss is {loss.item()}; "
                "lower train.common.learning_rate, or look at the train slices in rows "
                f"{sorted(batch[2].tolist())} of the manifest's train split"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Loss and hard mean Dice at 0.5, on the grid."""
        logits, loss = self.loss(batch)
        hard, truth = logits > 0, batch[1] > 0.5
        positive, negative = (hard & truth).sum((1, 2, 3)), (hard ^ truth).sum((1, 2, 3))
        score = dice(positive.cpu().numpy(), negative.cpu().numpy()).mean()
        size = len(batch[0])
        self.log("val_loss", loss, prog_bar=True, batch_size=size)
        self.log("val_dice", float(score), prog_bar=True, batch_size=size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, its rate reduced when the validation loss stops falling."""
        common = self.params
        optimizer = torch.optim.Adam(self.network.parameters(), lr=common.learning_rate)
        # Ours rather than Lightning's, which would step it after the checkpoint of the epoch.
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=common.plateau_factor,
            patience=common.plateau_patience,
            min_lr=common.minimum_learning_rate,
        )
        return optimizer

    def on_train_epoch_end(self) -> None:
        """Lets the schedule see the epoch."""
        self.plateau.step(float(self.trainer.callback_metrics["val_loss"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the schedule's state."""
        checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the schedule's state once the optimiser exists."""
        self.resumed_plateau = checkpoint["plateau"]

    def on_train_start(self) -> None:
        """Goes on where a checkpoint ended."""
        if hasattr(self, "resumed_plateau"):
            self.plateau.load_state_dict(self.resumed_plateau)


class History(callbacks.Callback):
    """Keeps one row an epoch, prints it, and rewrites the CSV that `dvc plots` reads."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, float]]()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning once training and validation figures of an epoch are in."""
        row = {"epoch": trainer.current_epoch + 1}
        row |= {name: round(float(value), 5) for name, value in trainer.callback_metrics.items()}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows = [r for r in self.rows if r["epoch"] < row["epoch"]] + [row]
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
        with atomic_path(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, for the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the rows of a checkpoint."""
        self.rows = list(state["rows"])


def train(
    name: str,
    params: TrainParams,
    slices: dict[str, Slices],
    policy: Policy,
    folder: Path,
    checkpoints: Path,
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
        checkpoints: Holds the last epochs' ends while training lasts; if it holds some already,
            training goes on from there. Removed at the end.
        logger: Where Lightning also reports each epoch, such as MLflow.
        progress_bar: Whether to draw one; it suits a terminal, not a log.

    Returns:
        A summary: parameters, epochs, best epoch and its figures, images per second, device.

    Raises:
        InputError: A split has no slice, the grid does not fit the network, the loss is not a
            number, or the disk is full.
    """
    for split in ("train", "valid"):
        if not len(slices[split].images):
            raise InputError(f"data/{split}: has no usable image; training needs some")
    chosen, side = params.network(name), slices["train"].images.shape[-1]
    if side % (step := chosen.stem * 2 ** (len(chosen.channels) - 1)):
        raise InputError(
            f"augment.image_size is {side}, which train.{name}.stem and channels need to be a "
            f"multiple of {step}"
        )
    common = params.common
    lightning.seed_everything(common.seed, workers=True, verbose=False)
    module = Segmenter(build_network(name, chosen), params)
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
    checkpoints.mkdir(parents=True, exist_ok=True)
    history = History(folder / "history.csv")
    kept: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = callbacks.ModelCheckpoint(checkpoints, "best", monitor="val_loss", **kept)
    # Two, so that one that was cut off or damaged loses an epoch and not the training.
    recent = callbacks.ModelCheckpoint(
        checkpoints, "{epoch}", monitor="epoch", mode="max", save_top_k=2, **kept
    )
    trainer = lightning.Trainer(
        max_epochs=common.epochs,
        deterministic=common.deterministic,
        logger=logger or False,
        callbacks=[
            callbacks.EarlyStopping("val_loss", patience=common.early_stopping_patience),
            history,
            *([callbacks.TQDMProgressBar(leave=False)] if progress_bar else []),
            best,
            recent,
        ],
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    started = time.monotonic()
    try:
        last = last_checkpoint(checkpoints)
        trainer.fit(module, *loaders, ckpt_path=last, weights_only=True)
    except OSError as error:
        raise InputError(
            f"{error.filename or checkpoints}: cannot be written ({error.strerror}); make room and "
            "type the same again: training goes on from the last whole epoch"
        ) from None
    seconds = time.monotonic() - started
    state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    module.load_state_dict(state)
    weights = {key: value.contiguous().cpu() for key, value in module.network.state_dict().items()}
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file(weights, temporary)
    shutil.rmtree(checkpoints)
    row_of_best = min(history.rows, key=lambda row: row["val_loss"])
    return {
        "network": name,
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "epochs": len(history.rows),
        "best_epoch": row_of_best["epoch"],
        "val_loss": row_of_best["val_loss"],
        "val_dice": row_of_best["val_dice"],
        "images_per_second": round(len(history.rows) * len(slices["train"].images) / seconds, 2),
        "device": str(trainer.strategy.root_device),
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The last epoch's checkpoint that can be read, if there is one; says which cannot."""

    def epoch(path: Path) -> int:
        return int(path.stem.removeprefix("epoch="))

    for path in sorted(folder.glob("epoch=*.ckpt"), key=epoch, reverse=True):
        try:
            torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
            print(
                f"{path}: is damaged ({str(error).splitlines()[0]}); going on from the one before"
            )
            path.unlink()
            continue
        print(f"going on after epoch {epoch(path) + 1}")
        return path
    return None
