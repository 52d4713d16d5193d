"""Training of one network: checkpoints, history, and the best weights as a file.

An interrupted training resumes from the end of its last epoch and comes to the same weights.
"""

import hashlib
import logging
import os
import platform
import re
import shutil
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
from tumorseg.training.datasets import EpochSampler, LoaderContext, TrainingSlices, ValidationSlices
from tumorseg.training.encoders import EfficientNetLite0
from tumorseg.training.networks import build_network
from tumorseg.training.segmenter import Segmenter

# Lightning's advertisements, and its warnings about choices that are meant.
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
COMPILERS = (os.environ.get("CXX") or "g++", "g++", "clang++")  # for torch.compile on CPUs


class History(callbacks.Callback):
    """Keeps and prints one row an epoch.

    Attributes:
        rows: Epoch, losses, Dice and learning rate of each epoch so far.
        seconds: The time they took, without what an interruption lost.
    """

    def __init__(self) -> None:
        self.rows = list[dict[str, float]]()
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Notes the time."""
        self.started = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Adds the epoch's row, after its validation."""
        self.seconds += time.monotonic() - self.started
        row = {"epoch": trainer.current_epoch + 1}
        row |= {name: round(float(value), 5) for name, value in trainer.callback_metrics.items()}
        row["learning_rate"] = trainer.optimizers[0].param_groups[-1]["lr"]  # the decoder's
        self.rows.append(row)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))

    def state_dict(self) -> dict[str, Any]:
        """Its part of a checkpoint."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores its part of a checkpoint."""
        self.rows, self.seconds = list(state["rows"]), state["seconds"]


class ResumableEarlyStopping(callbacks.EarlyStopping):
    """Early stopping whose decision to stop outlasts an interruption."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Stops a resumed training whose patience had run out before it was killed."""
        trainer.should_stop = self.wait_count >= self.patience


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically; Lightning moves them from a temporary folder, another disk."""

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

    With several devices or nodes, Lightning's ddp strategy starts the running command again for
    each further device of this node; every process calls this with the same arguments, and the
    first one writes.

    Args:
        name: `unet` or `attention_unet`.
        seed: Of the initial weights, the order of the slices and their augmentation.
        params: The train section.
        slices: `train` and `valid`.
        policy: The augmentation, applied anew to every slice in every epoch.
        folder: Receives `weights.safetensors` (of the epoch that best_epoch asks for) and
            `history.csv` (a row an epoch).
        checkpoints: Holds `last.ckpt`, the end of the last epoch; if it is there already, training
            resumes from it. The caller removes the folder, once it has stored the summary.
        logger: Where Lightning also reports each epoch, such as MLflow.
        progress_bar: Whether to draw one on standard error.

    Returns:
        A summary: parameters, epochs, best epoch and its figures, images per second, seconds,
        hardware, precision, whether it was deterministic, and the digest of the weights. Empty in
        processes other than the first.

    Raises:
        InputError: A split has too few slices, the grid does not fit the network, a node has no
            MASTER_ADDR, or the loss is not a number.
    """
    _check(name, params, slices)
    common = params.common
    lightning.seed_everything(seed, workers=True, verbose=False)
    # Deterministic mode would fill memory that is overwritten anyway.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    network = build_network(name, params.network(name))
    if isinstance(network.encoder, EfficientNetLite0):
        weights = params.encoder_weights
        network.encoder.load_pretrained(None if weights is None else Path(weights))
    module = Segmenter(network, common)
    if common.compile:
        module.network.compile()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    history = History()
    average = callbacks.EMAWeightAveraging(decay=common.weight_averaging)
    patience = common.early_stopping_patience
    stopping = {
        "loss": [ResumableEarlyStopping("val_loss", patience=patience)],
        "dice": [ResumableEarlyStopping("val_dice", patience=patience, mode="max")],
        "last": [],
    }[common.best_epoch]
    alone = processes(common) == 1
    trainer = lightning.Trainer(
        devices=common.devices,
        num_nodes=common.nodes,
        strategy="auto" if alone else "ddp",
        precision=precision(common),
        # gloo, on CPUs, has no synchronised batch normalisation.
        sync_batchnorm=not alone and torch.cuda.is_available(),
        use_distributed_sampler=False,  # EpochSampler divides the slices
        accumulate_grad_batches=micro_batches(common)[1],
        max_epochs=common.epochs,
        deterministic=common.deterministic,
        logger=logger or False,
        callbacks=[
            *([average] if common.weight_averaging else []),
            *stopping,
            history,
            callbacks.ModelCheckpoint(
                checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False
            ),
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    rank, count = trainer.global_rank, trainer.world_size
    options: dict[str, Any] = {
        "batch_size": micro_batches(common)[0],
        "num_workers": common.workers,
        "multiprocessing_context": LoaderContext() if common.workers else None,
        "persistent_workers": common.workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }
    order = EpochSampler(len(slices["train"].images), seed, rank, count)
    shown = range(rank, len(slices["valid"].images), count)
    trainer.fit(
        module,
        DataLoader(TrainingSlices(slices["train"], policy, seed), sampler=order, **options),
        DataLoader(ValidationSlices(slices["valid"]), sampler=shown, **options),
        ckpt_path=last if (last := checkpoints / "last.ckpt").exists() else None,
        weights_only=True,
    )
    if not trainer.is_global_zero:
        return {}
    with atomic_path(folder / "history.csv") as temporary:
        pd.DataFrame(history.rows).to_csv(temporary, index=False)
    saved = save({k: v.contiguous() for k, v in module.best["weights"].items()})
    with atomic_path(folder / "weights.safetensors") as temporary:
        temporary.write_bytes(saved)
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
        "weights_digest": hashlib.sha256(saved).hexdigest(),
    }


def is_first_process() -> bool:
    """Whether this is the training's first process, by Lightning's and torchrun's variables."""
    return not any(int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def processes(common: CommonTrainParams) -> int:
    """How many processes train together, one a device."""
    return common.devices * common.nodes


def micro_batches(common: CommonTrainParams) -> tuple[int, int]:
    """Slices in one pass on one device, and the number of passes before an optimiser step."""
    each = common.batch_size // processes(common)
    at_once = min(each, common.micro_batch_size)
    return at_once, each // at_once


def precision(common: CommonTrainParams) -> str:
    """Lightning's precision setting; `auto` is bf16 where the processor computes in it."""
    if common.precision != "auto":
        return common.precision
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return "bf16-mixed" if fast else "32-true"


def hardware() -> str:
    """Number and model of the GPUs or CPU cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    name = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{os.cpu_count()} cores of {name[1].strip() if name else platform.machine()}"


def _check(name: str, params: TrainParams, slices: dict[str, Slices]) -> None:
    common, gpus = params.common, torch.cuda.device_count()
    if gpus and gpus < common.devices:
        raise InputError(
            f"train.common.devices is {common.devices}, but there are {gpus} GPUs: ask for no "
            "more, or hide them with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    if common.compile and not gpus and not any(map(shutil.which, COMPILERS)):
        raise InputError("train.common.compile: needs a C++ compiler: install g++, or set it false")
    if common.nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"train.common.nodes is {common.nodes}: start the same command on each node with "
            "MASTER_ADDR (host name of the first), MASTER_PORT and NODE_RANK (from 0) set"
        )
    for split in ("train", "valid"):
        if len(slices[split].images) < processes(common):
            raise InputError(
                f"data/{split}: has {len(slices[split].images)} usable images, but training needs "
                f"at least {processes(common)}, one a process (train.common.devices × nodes)"
            )
    chosen, side = params.network(name), slices["train"].images.shape[-1]
    step = chosen.stride
    if side % step or (side == step and chosen.norm != "none"):
        raise InputError(
            f"augment.image_size is {side}, but train.{name} (channels, space_to_depth) needs a "
            f"multiple of {step}, and more than {step} where norm is not none"
        )
