"""crossvalidate: arrays → figures over folds, each training a task on some worker.

`python -m pipelines.crossvalidate` goes on where it was interrupted, when typed again.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines._fanout import outcomes, workers
from pipelines._flow import command, stage, step
from pipelines._paths import CROSSVALIDATION, POLICY
from pipelines.train import unfinished
from tumorseg.core.environment import STATE
from tumorseg.core.errors import InputError, StageError
from tumorseg.core.files import atomic_path, write_json, write_text
from tumorseg.core.params import CrossvalidateParams, EvaluateParams, TrainParams, load_params
from tumorseg.data.arrays import ARRAYS, check_made_of
from tumorseg.data.manifest import THUMBNAILS, load_manifest
from tumorseg.data.splits import patients_known
from tumorseg.evaluation.results import crossvalidated
from tumorseg.evaluation.strata import strata
from tumorseg.registry.runs import lineage, recipe
from tumorseg.training.crossvalidation import (
    Fold,
    make_folds,
    page,
    pool,
    score_fold,
    tabulate,
    train_fold,
)
from tumorseg.training.predict_split import load_network

WEIGHTS = "weights.safetensors"


def crossvalidate() -> None:
    """Trains each network on each fold that is not done yet, and judges them.

    Raises:
        InputError: It cannot begin, or a training found a mistake in params or data.
        StageError: A training failed.
    """
    params = load_params(CrossvalidateParams)
    whole = load_params(TrainParams)
    # A worker trains alone, in a process that must have no children. No epoch is chosen, since it
    # would be on the slices that are judged.
    own = {"devices": 1, "nodes": 1, "workers": 0, "best_epoch": "last"}
    training = whole.model_copy(update={"common": whole.common.model_copy(update=own)})
    manifest = load_manifest()
    check_made_of(manifest)
    folds = make_folds(manifest, params.folds, params.seed)
    # Digests of data, policy, parameters and code.
    made_of: dict[str, str] = {
        name: unfinished(name, params.seed, training).name for name in params.networks
    }
    places: dict[tuple[int, str], Path] = {
        (fold.number, network): place(fold, network, params.seed, made_of[network])
        for fold in folds
        for network in params.networks
    }
    calls = {
        f"fold {fold.number}, {network}": (
            fold,
            network,
            params.seed,
            training,
            ARRAYS.resolve(),
            POLICY.resolve(),
            places[fold.number, network],
            params,
        )
        for fold in folds
        for network in params.networks
    }
    with workers(params) as runner:

        @stage(name="crossvalidate", task_runner=runner)
        def trainings() -> None:
            summaries = dict[tuple[int, str], Any]()
            failed = []
            results = outcomes(train_fold, calls, params.retries)
            for (number, network), found in zip(places, results, strict=True):
                if isinstance(found, Exception):
                    failed.append(found)
                    continue
                summaries[number, network] = found
                print(f"fold {number}, {network}: trained for {found['epochs']} epochs")
            for error in failed:
                if isinstance(error, InputError):
                    raise error
            if failed:
                raise StageError(
                    f"{len(failed)} of {len(calls)} trainings failed, and the log says why; the "
                    "others are kept: type the same again"
                )
            step(judge)(manifest, folds, summaries, places, training)

        trainings()


def judge(
    manifest: pd.DataFrame,
    folds: list[Fold],
    summaries: dict[tuple[int, str], Any],
    places: dict[tuple[int, str], Path],
    training: TrainParams,
) -> None:
    """Scores the trained networks on their folds, and writes tables, figures and page."""
    params = load_params(EvaluateParams)
    table, thumbnails = pool(manifest), np.load(THUMBNAILS, mmap_mode="r")
    parts = []
    for fold in folds:
        networks = {
            network: load_network(network, training, folder / WEIGHTS, params)
            for (number, network), folder in places.items()
            if number == fold.number
        }
        parts.append(score_fold(fold, networks, ARRAYS, table, thumbnails, params))
    scored = pd.concat(parts, ignore_index=True)
    figures = crossvalidated(scored, patients_known(manifest), params)
    figures |= {"data_md5": lineage()["data_md5"], "recipe": recipe()}
    for path, frame in {
        CROSSVALIDATION.with_suffix(".csv"): tabulate(folds, summaries, figures),
        CROSSVALIDATION.with_name("crossvalidation_slices.csv"): scored,
    }.items():
        with atomic_path(path) as temporary:
            frame.to_csv(temporary, index=False)
    write_json(CROSSVALIDATION, figures)
    text = page(folds, figures, strata(scored, params.bootstrap_samples, params.seed))
    write_text(CROSSVALIDATION.with_suffix(".md"), text)
    print(text)
    print("`dvc repro --force evaluate` takes it into reports/report.html")


def place(fold: Fold, network: str, seed: int, made_of: str) -> Path:
    """The folder of this training; its name is a digest of data, code, parameters and slices."""
    inputs = f"{made_of} {seed} {fold.train.tolist()} {fold.valid.tolist()}"
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    return (STATE / "crossvalidate" / f"{network}-{fold.number}" / digest).resolve()


if __name__ == "__main__":
    command(crossvalidate)
