"""Cross-validation over the slices of all splits: folds, the training of one, and the figures.

Groups are never divided: patients where the data name them, elsewhere guessed from equal, nearly
equal and neighbouring slices. Each slice is judged once, by networks that saw none of its group,
and on whose training its fold had no influence: not even their last epoch was chosen there.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from numpy.typing import NDArray

from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.core.params import EvaluateParams, FannedOutParams, TrainParams
from tumorseg.data.arrays import Slices, load_slices
from tumorseg.data.audit import copied_masks
from tumorseg.data.coco import SPLITS
from tumorseg.data.leakage import Thumbnails, neighbours_elsewhere
from tumorseg.data.splits import NO_PATIENTS, assign_splits, strata
from tumorseg.evaluation.metrics import group_name
from tumorseg.evaluation.results import ENSEMBLE, TITLES, fold_table, summary
from tumorseg.imaging.preprocess import Mask
from tumorseg.training.augmentation import load_policy
from tumorseg.training.networks import Probabilities
from tumorseg.training.predict_split import at_native_size, probabilities, score_masks
from tumorseg.training.trainer import train

THRESHOLD = 0.5  # of the probabilities; a better one could only be chosen on what is judged


@dataclass(frozen=True)
class Fold:
    """One division; slices are rows of the table from `pool`.

    Attributes:
        number: From 1, or as the data name it.
        train: What is trained on, shape (N,).
        valid: What it is validated on, shape (M,).
        groups: How many groups the latter form.
        excluded: Number of slices in neither, since they are neighbours of one of the latter, or
            since the data name no fold for them.
    """

    number: int
    train: NDArray[np.intp]
    valid: NDArray[np.intp]
    groups: int
    excluded: int


def pool(manifest: pd.DataFrame) -> pd.DataFrame:
    """The slices of train, then of valid, then of test, in the order of their arrays.

    Args:
        manifest: As the split stage writes it.
    """
    return pd.concat([manifest[manifest["split"] == split] for split in SPLITS], ignore_index=True)


def make_folds(manifest: pd.DataFrame, folds: int | Literal["given"], seed: int) -> list[Fold]:
    """The folds that crossvalidate.folds asks for: see `divide` and `given_folds`."""
    table = pool(manifest)
    return given_folds(table) if folds == "given" else divide(table, folds, seed)


def given_folds(table: pd.DataFrame) -> list[Fold]:
    """The folds that the data name: each is validated by a network trained on all others.

    Args:
        table: From `pool`.

    Raises:
        InputError: The data name fewer than two folds, or divide a patient.
    """
    fold = table["fold"].dropna()
    numbers = sorted(fold.unique())
    if len(numbers) < 2:
        raise InputError(
            f"crossvalidate.folds is given, but the data name {len(numbers)} folds; set it to a "
            "number of folds, such as 5"
        )
    divided = table.groupby("group")["fold"].nunique() > 1
    if divided.any():
        raise InputError(
            f"crossvalidate.folds is given, but the folds of the data divide {divided.sum()} "
            f"patients, such as {divided.idxmax()}; set it to a number of folds, such as 5"
        )
    rows = {number: fold.index[fold == number].to_numpy() for number in numbers}
    return [
        Fold(
            int(number),
            np.setdiff1d(fold.index, valid),
            valid,
            table["split_group"][valid].nunique(),
            len(table) - len(fold),
        )
        for number, valid in rows.items()
    ]


def divide(table: pd.DataFrame, count: int, seed: int) -> list[Fold]:
    """Divides slices so that each is validated once, by a network trained on none of its group.

    Args:
        table: From `pool`.
        count: How many folds.
        seed: Decides between groups of equal size.

    Raises:
        InputError: There are fewer groups than folds.
    """
    groups = table["split_group"].to_numpy()
    found = len(np.unique(groups))
    if found < count:
        raise InputError(
            f"crossvalidate.folds is {count}, but the slices form {found} groups that "
            "must not be divided; ask for fewer folds"
        )
    shares = {str(number): 1 / count for number in range(1, count + 1)}
    chosen = np.array(assign_splits([str(group) for group in groups], strata(table), shares, seed))
    folds = []
    for number in range(1, count + 1):
        valid = chosen == str(number)
        divided = table.assign(split=np.where(valid, "valid", "train"))
        # Without patients' names, groups are parts of chains, whose ends are neighbours.
        next_to = neighbours_elsewhere(divided, ("valid",)) & table["group"].isna().to_numpy()
        excluded = next_to & ~valid
        folds.append(
            Fold(
                number,
                np.flatnonzero(~valid & ~excluded),
                np.flatnonzero(valid),
                len(np.unique(groups[valid])),
                int(excluded.sum()),
            )
        )
    return folds


def train_fold(
    fold: Fold,
    network: str,
    seed: int,
    params: TrainParams,
    arrays: Path,
    policy: Path,
    folder: Path,
    workers: FannedOutParams,
) -> dict[str, Any]:
    """Trains one network on one fold, or returns its summary if that is done already.

    It resumes an interrupted training, and waits while another process trains the same fold.

    Args:
        fold: Of the slices of `arrays`.
        network: `unet` or `attention_unet`.
        seed: Of the training.
        params: The train section, for one device.
        arrays: The folder of the arrays.
        policy: The augmentation policy's file.
        folder: For weights, history and checkpoints.
        workers: Gives the number of threads.

    Returns:
        As `tumorseg.training.trainer.train`.

    Raises:
        InputError: As `tumorseg.training.trainer.train`.
    """
    done, unfinished = folder / "run.json", folder / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not done.exists():
            torch.set_num_threads(workers.threads_here())
            slices = fold_slices(fold, arrays)
            summary = train(network, seed, params, slices, load_policy(policy), folder, unfinished)
            write_json(done, summary)
            shutil.rmtree(unfinished)
    found: dict[str, Any] = json.loads(done.read_text())
    return found


def fold_slices(fold: Fold, arrays: Path) -> dict[str, Slices]:
    """The slices of both parts of a fold, in memory."""
    parts = [load_slices(split, arrays) for split in SPLITS]
    images = np.concatenate([part.images for part in parts])
    masks = np.concatenate([part.masks for part in parts])
    rows_of = {"train": fold.train, "valid": fold.valid}
    return {split: Slices(images[rows], masks[rows]) for split, rows in rows_of.items()}


def score_fold(
    fold: Fold,
    networks: Mapping[str, Probabilities],
    arrays: Path,
    table: pd.DataFrame,
    thumbnails: Thumbnails,
    params: EvaluateParams,
) -> pd.DataFrame:
    """Scores the networks of a fold, their mean and the copy baseline on its slices.

    Args:
        fold: Of the slices of `arrays`.
        networks: Name → the network that was trained on it.
        arrays: The folder of the arrays.
        table: From `pool`.
        thumbnails: Of all slices, as the validate stage writes them.
        params: The evaluate section.

    Returns:
        A row a method and slice: fold, and the columns of `score_masks` without masks.
    """
    images = fold_slices(fold, arrays)["valid"].images
    found = {name: probabilities(network, images) for name, network in networks.items()}
    if len(found) > 1:
        found[ENSEMBLE] = np.mean(list(found.values()), axis=0)
    trained, judged = table.iloc[fold.train], table.iloc[fold.valid]
    masks: dict[str, Iterator[Mask]] = {
        name: (one >= THRESHOLD for one in at_native_size(maps, judged))
        for name, maps in found.items()
    }
    masks["copy"] = copied_masks(thumbnails, trained, judged)
    scored = [score_masks(name, answers, judged, params) for name, answers in masks.items()]
    without = pd.concat(scored, ignore_index=True).drop(columns=["mask_rle", "truth_rle"])
    return without.assign(fold=fold.number)


def tabulate(
    folds: Sequence[Fold],
    summaries: Mapping[tuple[int, str], dict[str, Any]],
    figures: Mapping[str, Any],
) -> pd.DataFrame:
    """A row a fold and network: sizes of its parts, mean Dice, and what its training took.

    Args:
        folds: From `make_folds`.
        summaries: Number of the fold and network → what `train_fold` returned.
        figures: From `tumorseg.evaluation.results.crossvalidated`.
    """
    numbered = {fold.number: fold for fold in folds}
    rows = []
    for (number, network), run in summaries.items():
        fold = numbered[number]
        row = {"fold": number, "network": network, "train_slices": len(fold.train)}
        row |= {"slices": len(fold.valid), "groups": fold.groups, "excluded": fold.excluded}
        row["mean_dice"] = figures["folds"][str(number)][network]
        rows.append(row | {name: run[name] for name in ("parameters", "epochs", "seconds")})
    return pd.DataFrame(rows)


def page(folds: Sequence[Fold], figures: dict[str, Any], strata: pd.DataFrame) -> str:
    """The figures as Markdown: Dice of each fold, mean and SD, over all slices, by category.

    Args:
        folds: From `make_folds`.
        figures: From `tumorseg.evaluation.results.crossvalidated`.
        strata: From `tumorseg.evaluation.strata.strata`.
    """
    known = figures["split"]["patients_known"]
    dice = fold_table(figures).rename(columns=TITLES).map("{:.3f}".format)
    for place, (title, sizes) in enumerate(
        {
            "trained on": [len(fold.train) for fold in folds],
            "judged slices": [len(fold.valid) for fold in folds],
            f"their {group_name(known)}s": [fold.groups for fold in folds],
        }.items()
    ):
        dice.insert(place, title, [*map(str, sizes), "", ""])
    return f"""# Cross-validation

{"Each patient is in one fold." if known else NO_PATIENTS} Each fold is judged by networks that \
were trained on the others: those of the last epoch, at a threshold of {THRESHOLD}, so that \
nothing was chosen on what is judged. Mean Dice over slices, at each image's own size:

{dice.rename_axis("fold").to_markdown(disable_numparse=True)}

Folds share most of what they train on: their SD is no confidence interval. Intervals and tests \
below resample {group_name(known)}s.

{summary(figures, strata, "cross-validation")}
"""
