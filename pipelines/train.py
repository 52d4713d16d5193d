"""train: arrays → weights, for one network a call: `python -m pipelines.train unet`."""

import sys
from pathlib import Path

from pipelines._flow import main, stage, step
from pipelines.augment import POLICY
from tumorseg import tracking
from tumorseg.arrays import load_slices
from tumorseg.augmentation import load_policy
from tumorseg.files import write_json
from tumorseg.params import AugmentParams, RegisterParams, TrainParams, load_params
from tumorseg.training import train as fit

TRAINED = Path("artifacts/train")


@stage(name="train", flow_run_name="train-{network}")
def train(network: str) -> None:
    """Trains one network; MLflow shows each epoch as it ends."""
    params = load_params(TrainParams)
    chosen = params.network(network)
    logger = tracking.start_run(
        load_params(RegisterParams).experiment,
        network,
        {
            "augment": load_params(AugmentParams).model_dump(),
            "train": params.common.model_dump() | chosen.model_dump(),
        },
    )
    summary = step(fit)(
        network,
        params,
        {split: load_slices(split) for split in ("train", "valid")},
        load_policy(POLICY),
        TRAINED / network,
        logger,
        progress_bar=sys.stderr.isatty(),
    )
    write_json(TRAINED / network / "run.json", summary | {"run_id": logger.run_id})
    print(f"{network}: {summary}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("train: name one network: python -m pipelines.train unet")
    main(train, sys.argv[1])
