"""Training of one network: checkpoints, history, and the best weights as a file.

Whoever kills it at any moment loses the epoch at hand: it resumes from the last one's end and
comes to the same weights. The best weights so far are part of every checkpoint.
"""

import hashlib
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path, says_full
from tumorseg.core.params import CommonTrainParams, TrainParams
from tumorseg.data.arrays import Slices
from tumorseg.training import devices
from tumorseg.training.augmentation import Policy
from tumorseg.training.checkpoints import Patience, WholeFiles, last_checkpoint
from tumorseg.training.datasets import EpochSampler, TrainingSlices, ValidationSlices
from tumorseg.training.networks import build_network
from tumorseg.training.segmenter import Segmenter

# Lightning advertises other products on each start; its warnings about our choices stay.
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
warnings.filterwarnings("ignore", message=".*exists and is not empty.*")


class History(callbacks.Callback):
    """Keeps one row an epoch, prints it, and rewrites the CSV that `dvc plots` reads."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, float]]()
        self.seconds = 0.0  # of training, without what an interruption lost

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Notes the time."""
        self.started = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning once training and validation figures of an epoch are in."""
        self.seconds += time.monotonic() - self.started
        row = {"epoch": trainer.current_epoch + 1}
        row |= {name: round(float(value), 5) for name, value in trainer.callback_metrics.items()}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows = [r for r in self.rows if r["epoch"] < row["epoch"]] + [row]
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
        self.write()

    def write(self) -> None:
        """Writes the CSV, whole or not at all."""
        with atomic_path(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far and the time they took, for the checkpoint."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the rows of a checkpoint."""
        self.rows, self.seconds = list(state["rows"]), state["seconds"]


def train(
    name: str,
    seed: int,
    params: TrainParams,
    slices: dict[str, Slices],
    policy: Policy,
    folder: Path,
    checkpoints: Path,
    logger: Logger | None = None,
    progress_bar: bool = False,
) -> dict[str, Any]:
    """Trains one network and writes its best weights.

    Where several processes train together, each calls this, and the first one writes.

    Args:
        name: `unet` or `attention_unet`.
        seed: Of the first weights, the order of the slices and their augmentation.
        params: The train section.
        slices: `train` and `valid`.
        policy: The augmentation, applied anew to every slice in every epoch.
        folder: Receives `weights.safetensors` (of the epoch with the lowest validation loss) and
            `history.csv` (a row an epoch).
        checkpoints: Holds the last epochs' ends while training lasts; if it holds some already,
            training goes on from there. The caller removes it, once it has noted the summary.
        logger: Where Lightning also reports each epoch, such as MLflow.
        progress_bar: Whether to draw one; it suits a terminal, not a log.

    Returns:
        A summary: parameters, epochs, best epoch and its figures, images per second, seconds,
        hardware, precision, whether it was deterministic, and the digest of the weights.

    Raises:
        InputError: A split has too few slices, the grid does not fit the network, there are fewer
            devices than asked for, the loss is not a number, or the disk is full.
    """
    _check(name, params, slices)
    common = params.common
    lightning.seed_everything(seed, workers=True, verbose=False)
    module = Segmenter(build_network(name, params.network(name)), common)
    if common.compile:
        _compile(module)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    history = History(folder / "history.csv")
    # Two, so that one that was cut off or damaged loses an epoch and not the training.
    recent = callbacks.ModelCheckpoint(
        checkpoints,
        "{epoch}",
        monitor="epoch",
        mode="max",
        save_top_k=2,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    average = callbacks.EMAWeightAveraging(decay=common.weight_averaging)
    trainer = lightning.Trainer(
        max_epochs=common.epochs,
        deterministic=common.deterministic,
        logger=logger or False,
        callbacks=[
            *([average] if common.weight_averaging else []),
            Patience("val_loss", patience=common.early_stopping_patience),
            history,
            *([callbacks.TQDMProgressBar(leave=False)] if progress_bar else []),
            recent,
        ],
        plugins=[WholeFiles()],
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **devices.trainer_options(common),
    )
    try:
        last = last_checkpoint(checkpoints)
        trainer.fit(
            module, *_loaders(slices, policy, seed, common), ckpt_path=last, weights_only=True
        )
        if not trainer.is_global_zero:
            return {}
        history.write()  # no epoch did, where all were in the checkpoint
        with atomic_path(folder / "weights.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in module.best["weights"].items()}, temporary)
            digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    except (OSError, SafetensorError) as error:
        place = getattr(error, "filename", None)
        room = "make room and " if says_full(str(error)) else ""
        raise InputError(
            f"{place or checkpoints}: {getattr(error, 'strerror', None) or error}; {room}type the "
            "same again: training goes on from the last whole epoch"
        ) from None
    (row_of_best,) = (row for row in history.rows if row["epoch"] == module.best["epoch"])
    drawn = len(history.rows) * len(slices["train"].images)
    return {
        "network": name,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "epochs": len(history.rows),
        "best_epoch": module.best["epoch"],
        "val_loss": row_of_best["val_loss"],
        "val_dice": row_of_best["val_dice"],
        "images_per_second": round(drawn / history.seconds, 2),
        "seconds": round(history.seconds, 1),
        "device": str(trainer.strategy.root_device),
        "processes": devices.world(common),
        "hardware": devices.hardware(),
        "precision": devices.precision(common),
        "deterministic": common.deterministic,
        "weights_digest": digest,
    }


def _check(name: str, params: TrainParams, slices: dict[str, Slices]) -> None:
    for split in ("train", "valid"):
        if not len(slices[split].images):
            raise InputError(f"data/{split}: has no usable image; training needs some")
        if len(slices[split].images) < devices.world(params.common):
            raise InputError(
                f"data/{split}: has fewer usable images than train.common.devices × nodes, "
                f"{devices.world(params.common)}; ask for fewer"
            )
    chosen, side = params.network(name), slices["train"].images.shape[-1]
    step = chosen.stem * 2 ** (len(chosen.channels) - 1)
    if side % step:
        raise InputError(
            f"augment.image_size is {side}, which train.{name}.stem and channels need to be a "
            f"multiple of {step}"
        )
    if side == step and chosen.norm != "none":
        raise InputError(
            f"augment.image_size {side} leaves one pixel at the bottom of train.{name}, whose "
            "normalisation needs more: take a larger size, or fewer channels"
        )


def _loaders(
    slices: dict[str, Slices], policy: Policy, seed: int, common: CommonTrainParams
) -> list[DataLoader[Any]]:
    processes = devices.world(common)
    options: dict[str, Any] = {
        "batch_size": devices.share(common)[0],
        "num_workers": common.workers,
        "persistent_workers": common.workers > 0,  # a GPU's epoch is short beside their start
        "pin_memory": torch.cuda.is_available(),
    }
    return [
        DataLoader(
            TrainingSlices(slices["train"], policy, seed),
            sampler=EpochSampler(len(slices["train"].images), seed, devices.rank(), processes),
            **options,
        ),
        DataLoader(
            ValidationSlices(slices["valid"]),
            sampler=range(devices.rank(), len(slices["valid"].images), processes),
            **options,
        ),
    ]


def _compile(module: Segmenter) -> None:
    """Has torch.compile fuse the network, where that can work; its weights stay what they are."""
    if not torch.cuda.is_available() and devices.compiler() is None:
        print("train.common.compile: no C++ compiler is here; training goes on without")
        return
    module.network.compile()
