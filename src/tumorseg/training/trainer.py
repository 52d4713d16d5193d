"""Training of one network: checkpoints, history, and the best weights as a file.

Killed at any moment, it loses the epoch at hand: the same command resumes from the end of the last
epoch and comes to the same weights. The best weights so far are part of the checkpoint.
"""

import hashlib
import logging
import os
import platform
import re
import shutil
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save
from torch.utils.data import DataLoader

from tumorseg.core.errors import InputError
from tumorseg.core.files import atomic_path
from tumorseg.core.params import CommonTrainParams, TrainParams
from tumorseg.data.arrays import Slices
from tumorseg.training.augmentation import Policy
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

    @rank_zero_only
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Reports a resumed training."""
        if trainer.current_epoch:
            print(f"going on after epoch {trainer.current_epoch}")

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
        """Restores the rows of a checkpoint."""
        self.rows, self.seconds = list(state["rows"]), state["seconds"]


class ResumableEarlyStopping(callbacks.EarlyStopping):
    """Lightning saves how long it has waited, but not that training was to stop."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Stops a resumed training whose patience had run out before it was killed."""
        trainer.should_stop = self.wait_count >= self.patience


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning moves its temporary file, which across two disks is a copy that can be cut off."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Saves next to `path`, then renames."""
        with atomic_path(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


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

    With several devices or nodes, Lightning's ddp strategy starts the running command once more
    for each further device of this node; every process has to call this with the same arguments,
    and the first one writes.

    Args:
        name: `unet` or `attention_unet`.
        seed: Of the first weights, the order of the slices and their augmentation.
        params: The train section.
        slices: `train` and `valid`.
        policy: The augmentation, applied anew to every slice in every epoch.
        folder: Receives `weights.safetensors` (of the epoch with the lowest validation loss) and
            `history.csv` (a row an epoch).
        checkpoints: Holds `last.ckpt`, the end of the last epoch; if it is there already, training
            resumes from it. The caller removes the folder, once it has stored the summary.
        logger: Where Lightning also reports each epoch, such as MLflow.
        progress_bar: Whether to draw one; it suits a terminal, not a log.

    Returns:
        A summary: parameters, epochs, best epoch and its figures, images per second, seconds,
        hardware, precision, whether it was deterministic, and the digest of the weights. Empty in
        processes other than the first.

    Raises:
        InputError: A split has too few slices, the grid does not fit the network, there are fewer
            devices than asked for, or the loss is not a number.
        OSError: A file cannot be written.
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
    average = callbacks.EMAWeightAveraging(decay=common.weight_averaging)
    trainer = lightning.Trainer(
        max_epochs=common.epochs,
        deterministic=common.deterministic,
        logger=logger or False,
        callbacks=[
            *([average] if common.weight_averaging else []),
            ResumableEarlyStopping("val_loss", patience=common.early_stopping_patience),
            history,
            *([callbacks.TQDMProgressBar(leave=False)] if progress_bar else []),
            callbacks.ModelCheckpoint(
                checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False
            ),
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **trainer_options(common),
    )
    loaders = _loaders(slices, policy, seed, common, trainer)
    last = checkpoints / "last.ckpt"
    try:
        trainer.fit(module, *loaders, ckpt_path=last if last.exists() else None, weights_only=True)
    except Exception:
        if trainer.strategy.launcher is not None:
            # The others write nothing; they may wait for this process where no signal is heard.
            trainer.strategy.launcher.kill(signal.SIGKILL)
        raise
    if not trainer.is_global_zero:
        return {}
    history.write()  # no epoch did, where all were in the checkpoint
    weights = save({k: v.contiguous() for k, v in module.best["weights"].items()})
    with atomic_path(folder / "weights.safetensors") as temporary:
        temporary.write_bytes(weights)
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
        "processes": trainer.world_size,
        "hardware": hardware(),
        "precision": precision(common),
        "deterministic": common.deterministic,
        "weights_digest": hashlib.sha256(weights).hexdigest(),
    }


def is_first_process() -> bool:
    """Whether this process runs the flow and writes; false in those that only train along.

    Lightning, torchrun and the user number further processes and nodes in the environment.
    """
    return not any(int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def processes(common: CommonTrainParams) -> int:
    """How many processes train together, one a device."""
    return common.devices * common.nodes


def micro_batches(common: CommonTrainParams) -> tuple[int, int]:
    """How the batch of one optimiser step is divided.

    Returns:
        Slices at once on one device, and how many such passes precede a step.
    """
    each = common.batch_size // processes(common)
    at_once = min(each, common.micro_batch_size)
    return at_once, each // at_once


def precision(common: CommonTrainParams) -> str:
    """Lightning's name of the arithmetic; `auto` is bf16 where the processor computes in it."""
    if common.precision != "auto":
        return common.precision
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return "bf16-mixed" if fast else "32-true"


def hardware() -> str:
    """The processor that trains, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    listing = Path("/proc/cpuinfo")
    name = listing.exists() and re.search(r"^model name\s*:\s*(.+)", listing.read_text(), re.M)
    return f"{os.cpu_count()} cores of {name[1].strip() if name else platform.machine()}"


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU, if there is one."""
    return next(
        filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))), None
    )


def trainer_options(common: CommonTrainParams) -> dict[str, Any]:
    """What Lightning's Trainer must know of devices."""
    alone = processes(common) == 1
    return {
        "accelerator": "auto",
        "devices": common.devices,
        "num_nodes": common.nodes,
        "strategy": "auto" if alone else "ddp",
        "precision": precision(common),
        # Normalisation would otherwise see a fraction of the batch; gloo, on CPUs, has no such sum.
        "sync_batchnorm": not alone and torch.cuda.is_available(),
        "use_distributed_sampler": False,  # EpochSampler divides the slices
        "accumulate_grad_batches": micro_batches(common)[1],
    }


def _check(name: str, params: TrainParams, slices: dict[str, Slices]) -> None:
    common = params.common
    if torch.cuda.is_available() and torch.cuda.device_count() < common.devices:
        raise InputError(
            f"train.common.devices is {common.devices}, but there are {torch.cuda.device_count()} "
            "GPUs: ask for no more, or hide them with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    if common.nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"train.common.nodes is {common.nodes}: start the same command on each node with "
            "MASTER_ADDR (host name of the first), MASTER_PORT and NODE_RANK (from 0) set"
        )
    for split in ("train", "valid"):
        if not len(slices[split].images):
            raise InputError(f"data/{split}: has no usable image; training needs some")
        if len(slices[split].images) < processes(common):
            raise InputError(
                f"data/{split}: has fewer usable images than train.common.devices × nodes, "
                f"{processes(common)}; ask for fewer"
            )
    chosen, side = params.network(name), slices["train"].images.shape[-1]
    step = chosen.space_to_depth * 2 ** (len(chosen.channels) - 1)
    if side % step:
        raise InputError(
            f"augment.image_size is {side}, which train.{name}.space_to_depth and channels need to "
            f"be a multiple of {step}"
        )
    if side == step and chosen.norm != "none":
        raise InputError(
            f"augment.image_size {side} leaves one pixel at the bottom of train.{name}, whose "
            "normalisation needs more: take a larger size, or fewer channels"
        )


def _loaders(
    slices: dict[str, Slices],
    policy: Policy,
    seed: int,
    common: CommonTrainParams,
    trainer: lightning.Trainer,
) -> list[DataLoader[Any]]:
    rank, count = trainer.global_rank, trainer.world_size
    options: dict[str, Any] = {
        "batch_size": micro_batches(common)[0],
        "num_workers": common.workers,
        "persistent_workers": common.workers > 0,  # a GPU's epoch is short beside their start
        "pin_memory": torch.cuda.is_available(),
    }
    return [
        DataLoader(
            TrainingSlices(slices["train"], policy, seed),
            sampler=EpochSampler(len(slices["train"].images), seed, rank, count),
            **options,
        ),
        DataLoader(
            ValidationSlices(slices["valid"]),
            sampler=range(rank, len(slices["valid"].images), count),
            **options,
        ),
    ]


def _compile(module: Segmenter) -> None:
    """Has torch.compile fuse the network, where that can work; its weights stay what they are."""
    if not torch.cuda.is_available() and compiler() is None:
        print("train.common.compile: no C++ compiler is here; training goes on without")
        return
    module.network.compile()
