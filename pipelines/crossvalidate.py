"""crossvalidate: arrays → a table of folds, each training a task on some worker.

`python -m pipelines.crossvalidate` goes on where it was interrupted, when typed again.
"""

import hashlib
from pathlib import Path

from pipelines._fanout import outcomes, workers
from pipelines._flow import command, stage
from pipelines._paths import POLICY
from pipelines.train import unfinished
from tumorseg.core.environment import STATE
from tumorseg.core.errors import InputError, StageError
from tumorseg.core.files import atomic_path, write_text
from tumorseg.core.params import CrossvalidateParams, TrainParams, load_params
from tumorseg.data.arrays import ARRAYS, check_made_of, load_slices
from tumorseg.data.manifest import load_manifest
from tumorseg.data.splits import patients_known
from tumorseg.training.crossvalidation import Fold, make_folds, page, tabulate, train_fold

REPORT = Path("reports/crossvalidation")


def crossvalidate() -> None:
    """Trains each network on each fold that is not done yet, and writes the table.

    Raises:
        InputError: It cannot begin, or a training found a mistake in params or data.
        StageError: A training failed.
    """
    params = load_params(CrossvalidateParams)
    whole = load_params(TrainParams)
    # A worker trains alone, in a process that must have no children.
    alone = whole.common.model_copy(update={"devices": 1, "nodes": 1, "workers": 0})
    training = whole.model_copy(update={"common": alone})
    manifest = load_manifest()
    check_made_of(manifest)
    folds = make_folds(manifest, params.folds, params.seed)
    tasks: list[tuple[Fold, str]] = [(fold, name) for fold in folds for name in params.networks]
    # Digests of data, policy, parameters and code.
    made_of: dict[str, str] = {
        name: unfinished(name, params.seed, training).name for name in params.networks
    }
    calls = {
        f"fold {fold.number}, {network}": (
            fold,
            network,
            params.seed,
            training,
            ARRAYS.resolve(),
            POLICY.resolve(),
            place(fold, network, params.seed, made_of[network]),
            params,
        )
        for fold, network in tasks
    }
    with workers(params) as runner:

        @stage(name="crossvalidate", task_runner=runner)
        def trainings() -> None:
            summaries, failed = {}, []
            results = outcomes(train_fold, calls, params.retries)
            for (fold, network), found in zip(tasks, results, strict=True):
                if isinstance(found, Exception):
                    failed.append(found)
                    continue
                summaries[fold.number, network] = found
                print(f"fold {fold.number}, {network}: mean Dice {found['val_dice']:.3f}")
            for error in failed:
                if isinstance(error, InputError):
                    raise error
            if failed:
                raise StageError(
                    f"{len(failed)} of {len(tasks)} trainings failed, and the log says why; the "
                    "others are kept: type the same again"
                )
            figures = tabulate(folds, summaries)
            with atomic_path(REPORT.with_suffix(".csv")) as temporary:
                figures.to_csv(temporary, index=False)
            side = load_slices("train").images.shape[-1]
            known = patients_known(manifest)
            text = page(figures, side, patients=known, given=params.folds == "given")
            write_text(REPORT.with_suffix(".md"), text)
            print(text)

        trainings()


def place(fold: Fold, network: str, seed: int, made_of: str) -> Path:
    """The folder of this training; its name is a digest of data, code, parameters and slices."""
    inputs = f"{made_of} {seed} {fold.train.tolist()} {fold.valid.tolist()}"
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    return (STATE / "crossvalidate" / f"{network}-{fold.number}" / digest).resolve()


if __name__ == "__main__":
    command(crossvalidate)
