"""Cross-validation over the slices of train and valid: folds, the training of one, and the table.

Groups are never divided: patients where the data name them, elsewhere guessed from equal, nearly
equal and neighbouring slices. Test slices take no part, except in folds that the data name
(`crossvalidate.folds: given`), a published protocol in which every slice is validated once.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
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
from tumorseg.core.params import FannedOutParams, TrainParams
from tumorseg.data.arrays import Slices, load_slices
from tumorseg.data.coco import SPLITS
from tumorseg.data.leakage import neighbours_elsewhere
from tumorseg.data.splits import NO_PATIENTS, assign_splits, strata
from tumorseg.training.augmentation import load_policy
from tumorseg.training.trainer import train

POOLED = ("train", "valid")  # splits whose slices are divided anew


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


def pool(manifest: pd.DataFrame, splits: Sequence[str] = POOLED) -> pd.DataFrame:
    """The slices of train, then of valid, and of test if asked for, in the order of their arrays.

    Args:
        manifest: As the split stage writes it.
        splits: The first two or all of `SPLITS`.
    """
    return pd.concat([manifest[manifest["split"] == split] for split in splits], ignore_index=True)


def make_folds(manifest: pd.DataFrame, folds: int | Literal["given"], seed: int) -> list[Fold]:
    """The folds that crossvalidate.folds asks for: see `divide` and `given_folds`."""
    if folds == "given":
        return given_folds(pool(manifest, SPLITS))
    return divide(pool(manifest), folds, seed)


def given_folds(table: pd.DataFrame) -> list[Fold]:
    """The folds that the data name: each is validated by a network trained on all others.

    Args:
        table: From `pool`, of all splits.

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
            f"crossvalidate.folds is {count}, but the slices of train and valid form {found} "
            "groups that must not be divided; ask for fewer folds"
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
    parts = [load_slices(split, arrays) for split in SPLITS]  # those of test are last in any case
    images = np.concatenate([part.images for part in parts])
    masks = np.concatenate([part.masks for part in parts])
    rows_of = {"train": fold.train, "valid": fold.valid}
    return {split: Slices(images[rows], masks[rows]) for split, rows in rows_of.items()}


def tabulate(
    folds: Sequence[Fold], summaries: Mapping[tuple[int, str], dict[str, Any]]
) -> pd.DataFrame:
    """A row a fold and network: sizes of its parts, best epoch, its loss and Dice, and time.

    Args:
        folds: From `make_folds`.
        summaries: Number of the fold and network → what `train_fold` returned.
    """
    columns = ("parameters", "epochs", "best_epoch", "val_loss", "val_dice", "seconds")
    rows = []
    numbered = {fold.number: fold for fold in folds}
    for (number, network), summary in summaries.items():
        fold = numbered[number]
        row = {"fold": number, "network": network, "train_slices": len(fold.train)}
        row |= {"valid_slices": len(fold.valid), "valid_groups": fold.groups}
        rows.append(row | {"excluded": fold.excluded} | {name: summary[name] for name in columns})
    return pd.DataFrame(rows)


def page(table: pd.DataFrame, side: int, *, patients: bool, given: bool) -> str:
    """The table as Markdown: Dice of each fold and network, differences in pairs, mean and SD.

    Args:
        table: From `tabulate`.
        side: Of the grid, in pixels.
        patients: Whether the groups are patients, all of them given.
        given: Whether the folds are those that the data name.
    """
    over = "train and valid; test slices took no part."
    if given:
        over = "train, valid and test for which the data name one, so that none is left for a test."
    sizes = table.drop_duplicates("fold").set_index("fold")
    sizes = sizes[["train_slices", "valid_slices", "valid_groups"]]
    first, *others = dict.fromkeys(table["network"])
    dice = table.pivot(index="fold", columns="network", values="val_dice")[[first, *others]]
    for other in others:
        dice[f"{other} − {first}"] = dice[other] - dice[first]
    dice = pd.concat([dice, dice.agg(["mean", "std"]).rename({"std": "SD"})])
    return f"""# Cross-validation

{len(sizes)} folds over the {sizes["valid_slices"].sum()} slices of {over} \
{"Each patient is in one part." if patients else NO_PATIENTS}

{sizes.to_markdown()}

Mean Dice over the slices that a fold is validated on, on the grid of {side}² pixels, at threshold \
0.5. The epoch is the one with the lowest loss on the same slices, which flatters a little, all \
networks alike.

{dice.rename_axis("fold").to_markdown(floatfmt=".3f")}

Folds share most of what they train on: their spread is no confidence interval.
"""
