"""train: arrays → weights, for one network a call: `python -m pipelines.train unet`."""

import hashlib
import shutil
import sys
from pathlib import Path

import torch

from pipelines._flow import main, stage, step
from pipelines.augment import POLICY
from tumorseg import tracking
from tumorseg.arrays import ARRAYS, load_slices
from tumorseg.augmentation import load_policy
from tumorseg.environment import STATE
from tumorseg.files import atomic_path, write_json
from tumorseg.params import AugmentParams, RegisterParams, TrainParams, load_params
from tumorseg.training import train as fit

TRAINED = Path("artifacts/train")
SOURCES = ("augmentation", "draws", "loss", "networks", "preprocess", "training")


@stage(name="train", flow_run_name="train-{network}")
def train(network: str) -> None:
    """Trains one network, or goes on where it was interrupted; MLflow shows each epoch."""
    params = load_params(TrainParams)
    chosen = params.network(network)
    checkpoints = unfinished(network, params)
    known = checkpoints / "run_id"
    logger = tracking.start_run(
        load_params(RegisterParams).experiment,
        network,
        {
            "augment": load_params(AugmentParams).model_dump(),
            "train": params.common.model_dump() | chosen.model_dump(),
        },
        known.read_text() if known.exists() else None,
    )
    with atomic_path(known) as temporary:
        temporary.write_text(str(logger.run_id))
    summary = step(fit)(
        network,
        params,
        {split: load_slices(split) for split in ("train", "valid")},
        load_policy(POLICY),
        TRAINED / network,
        checkpoints,
        logger,
        progress_bar=sys.stderr.isatty(),
    )
    write_json(TRAINED / network / "run.json", summary | {"run_id": logger.run_id})
    print(f"{network}: {summary}")


def unfinished(network: str, params: TrainParams) -> Path:
    """Where this very training keeps its checkpoints; those of any other are removed.

    What it is trained on and by which code is part of the name, so that nothing is resumed that
    would come to other weights.
    """
    digest = hashlib.sha256(f"{params.model_dump_json()} torch {torch.__version__}".encode())
    code = Path(tracking.__file__).parent
    for path in (*sorted(ARRAYS.glob("*.npy")), POLICY, *(code / f"{n}.py" for n in SOURCES)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    folder = STATE / "train" / network / digest.hexdigest()[:16]
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("train: name one network: python -m pipelines.train unet")
    main(train, sys.argv[1])
