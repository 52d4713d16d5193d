"""Where training runs: one process or several, on the CPU or on GPUs, from params alone."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tumorseg.core.errors import InputError
from tumorseg.core.params import CommonTrainParams


def rank() -> int:
    """This process's number among those that train together; 0 writes and reports."""
    return int(os.environ.get("RANK", 0))


def world(common: CommonTrainParams) -> int:
    """How many processes train together."""
    return common.devices * common.nodes


def share(common: CommonTrainParams) -> tuple[int, int]:
    """How one optimiser step's batch is dealt out.

    Returns:
        Slices at once on one device, and how often in a row before the step.
    """
    each = common.batch_size // world(common)
    at_once = min(each, common.most_at_once)
    return at_once, each // at_once


def precision(common: CommonTrainParams) -> str:
    """Lightning's name of the arithmetic: what params say, or bf16 where the processor has it."""
    if common.precision != "auto":
        return common.precision
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return "bf16-mixed" if fast else "32-true"


def hardware() -> str:
    """What trains, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    name = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        names = [line for line in listing.read_text().splitlines() if line.startswith("model name")]
        name = names[0].partition(":")[2].strip() if names else name
    return f"{os.cpu_count()} cores of {name}"


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU, if there is one."""
    return next(
        filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))), None
    )


def trainer_options(common: CommonTrainParams) -> dict[str, Any]:
    """What Lightning's Trainer must know of devices."""
    alone = world(common) == 1
    return {
        "accelerator": "auto",
        "devices": common.devices,
        "num_nodes": common.nodes,
        "strategy": "auto" if alone else "ddp",
        "precision": precision(common),
        # Normalisation would otherwise see a fraction of the batch; gloo, on CPUs, has no such sum.
        "sync_batchnorm": not alone and torch.cuda.is_available(),
        "use_distributed_sampler": False,  # ours deals out the slices
        "accumulate_grad_batches": share(common)[1],
    }


def launched(common: CommonTrainParams) -> bool:
    """Whether this process is one of those that train: torchrun's, or the only one."""
    return world(common) == 1 or "RANK" in os.environ


def launch(common: CommonTrainParams, command: list[str]) -> int:
    """Starts this node's processes, as `torchrun` does, and waits for them.

    Args:
        common: Says how many, and where several nodes meet.
        command: Program and arguments of each process.

    Returns:
        0, or 1 where a process failed; it has said why by then.

    Raises:
        InputError: There are fewer GPUs than asked for, or the nodes do not meet.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() < common.devices:
        raise InputError(
            f"train.common.devices is {common.devices}, but there are {torch.cuda.device_count()} "
            "GPUs: ask for no more, or hide them with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    if not torch.cuda.is_available():
        # Each would otherwise start as many threads as there are cores.
        threads = max(1, (os.cpu_count() or 1) // common.devices)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=common.nodes,
        max_nodes=common.nodes,
        nproc_per_node=common.devices,
        run_id="tumorseg",
        rdzv_backend="c10d",
        rdzv_endpoint=common.rendezvous if common.nodes > 1 else "127.0.0.1:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError:
        return 1
    except RendezvousError as error:
        raise InputError(
            f"train.common.rendezvous: the {common.nodes} nodes did not meet at "
            f"{common.rendezvous} ({error}); name one of them there, and start the same command "
            "on each"
        ) from None
    return 0
