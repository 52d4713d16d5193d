"""train: arrays → weights, for one network and seed a call: `python -m pipelines.train unet 0`."""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from pipelines._flow import main, parser, stage, step
from pipelines._paths import POLICY, TRAINED
from tumorseg.core.environment import STATE
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json, write_text
from tumorseg.core.params import NETWORKS, AugmentParams, RegisterParams, TrainParams, load_params
from tumorseg.data.arrays import ARRAYS, load_slices
from tumorseg.registry import runs as tracking
from tumorseg.training.augmentation import load_policy
from tumorseg.training.trainer import is_first_process
from tumorseg.training.trainer import train as fit

SOURCES = ("training/*.py", "imaging/preprocess.py")


@stage(name="train", flow_run_name="train-{network}-{seed}")
def train(network: str, seed: int) -> None:
    """Trains one network, or resumes where it was interrupted; MLflow shows each epoch."""
    params = load_params(TrainParams)
    chosen = params.network(network)
    checkpoints = unfinished(network, seed, params)
    for other in checkpoints.parent.glob("*"):
        if other != checkpoints:
            shutil.rmtree(other)
    known = checkpoints / "run_id"
    logger = tracking.start_run(
        load_params(RegisterParams).experiment,
        network,
        seed,
        {
            "augment": load_params(AugmentParams).model_dump(),
            "train": {"seed": seed} | params.common.model_dump() | chosen.model_dump(),
        },
        known.read_text() if known.exists() else None,
    )
    write_text(known, str(logger.run_id))
    summary = step(train_here, name="train")(network, seed, logger)
    write_json(TRAINED / f"{network}-{seed}" / "run.json", summary | {"run_id": logger.run_id})
    shutil.rmtree(checkpoints)
    print(f"{network}-{seed}: {summary}")


def train_here(network: str, seed: int, logger: Logger | None = None) -> dict[str, Any]:
    """The part of one process in a training; only the first one returns a summary."""
    params = load_params(TrainParams)
    return fit(
        network,
        seed,
        params,
        {split: load_slices(split) for split in ("train", "valid")},
        load_policy(POLICY),
        TRAINED / f"{network}-{seed}",
        unfinished(network, seed, params),
        logger,
        progress_bar=sys.stderr.isatty() and is_first_process(),
    )


def unfinished(network: str, seed: int, params: TrainParams) -> Path:
    """The folder of a training's checkpoints, named by a digest of its data, parameters and code.

    So only a training that would come to the same weights is resumed.
    """
    if not POLICY.exists():
        raise InputError(f"{POLICY}: is not there; run `dvc repro augment`")
    sections = params.common.model_dump_json() + params.network(network).model_dump_json()
    sections += str(params.encoder_weights)
    digest = hashlib.sha256(f"{sections} torch {torch.__version__}".encode())
    code = Path(tracking.__file__).parents[1]
    sources = [path for pattern in SOURCES for path in sorted(code.glob(pattern))]
    for path in (*sorted(ARRAYS.glob("*.npy")), POLICY, *sources):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return STATE / "train" / f"{network}-{seed}" / digest.hexdigest()[:16]


def run(network: str, seed: int) -> None:
    """Runs the flow, or trains along, where Lightning or the user started a further process."""
    load_params(TrainParams)  # a mistake there needs no server to be reported
    entry = train if is_first_process() else train_here
    entry(network, seed)


if __name__ == "__main__":
    options = parser()
    options.add_argument("network", choices=NETWORKS)
    options.add_argument("seed", type=int)
    chosen = options.parse_args()
    main(run, chosen.network, chosen.seed)
