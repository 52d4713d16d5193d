"""Cross-validation over the slices of train and valid: folds, the training of one, and the table.

Slices that belong together are in one part of each fold, as in a grouped split; test slices take no
part.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.core.params import FannedOutParams, TrainParams
from tumorseg.data.arrays import Slices, load_slices
from tumorseg.data.leakage import neighbours_elsewhere
from tumorseg.data.splits import assign_splits, strata
from tumorseg.training.augmentation import load_policy
from tumorseg.training.trainer import train

POOLED = ("train", "valid")  # splits whose slices are divided anew
DONE = "run.json"
LOCK_SECONDS = 60


@dataclass(frozen=True)
class Fold:
    """One division; slices are rows of the table from `pool`.

    Attributes:
        number: From 1.
        train: What is trained on, shape (N,).
        valid: What it is validated on, shape (M,).
        groups: How many groups the latter form.
        excluded: Slices in neither, since they are next to one of the latter.
    """

    number: int
    train: NDArray[np.intp]
    valid: NDArray[np.intp]
    groups: int
    excluded: int


@dataclass(frozen=True)
class Place:
    """Where a fold's training finds its arrays and policy, and its own working folder."""

    arrays: Path
    policy: Path
    folder: Path


def pool(manifest: pd.DataFrame) -> pd.DataFrame:
    """The slices of train and then of valid, in the order of their arrays.

    Args:
        manifest: As the split stage writes it.
    """
    return pd.concat([manifest[manifest["split"] == split] for split in POOLED], ignore_index=True)


def divide(table: pd.DataFrame, count: int, seed: int) -> list[Fold]:
    """Divides slices so that each is validated once, by a network that saw none of its group.

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
        # Chains of slices without a patient's name were cut somewhere: there neighbours part.
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
    fold: Fold, network: str, seed: int, params: TrainParams, place: Place, workers: FannedOutParams
) -> dict[str, Any]:
    """Trains one network on one fold, or returns its summary if that is done already.

    Interrupted, it resumes from the end of the last epoch.

    Args:
        fold: Of the slices of `place.arrays`.
        network: `unet` or `attention_unet`.
        seed: Of the training.
        params: The train section, for one device.
        place: Where everything lies.
        workers: Says how many threads are this process's share.

    Returns:
        As `tumorseg.training.trainer.train`.

    Raises:
        InputError: As `tumorseg.training.trainer.train`, or another process trains this fold.
    """
    done = place.folder / DONE
    place.folder.mkdir(parents=True, exist_ok=True)
    try:
        # A worker of an earlier run may still be at it.
        with FileLock(place.folder / "lock", timeout=LOCK_SECONDS):
            if not done.exists():
                _remove_others(place.folder)
                torch.set_num_threads(workers.threads_here())
                unfinished = place.folder / "unfinished"
                slices = fold_slices(fold, place.arrays)
                policy = load_policy(place.policy)
                summary = train(network, seed, params, slices, policy, place.folder, unfinished)
                write_json(done, summary)
                shutil.rmtree(unfinished)
    except Timeout:
        raise InputError(
            f"{place.folder}: a worker of an earlier run still trains this fold; wait for its end, "
            "or end it, and try again"
        ) from None
    found: dict[str, Any] = json.loads(done.read_text())
    return found


def _remove_others(folder: Path) -> None:
    """Removes this fold's folders of other data or parameters, but where one still trains."""
    for other in folder.parent.glob("*"):
        if other != folder:
            with suppress(Timeout), FileLock(other / "lock", timeout=0):
                shutil.rmtree(other)


def fold_slices(fold: Fold, arrays: Path) -> dict[str, Slices]:
    """The slices of both parts of a fold, in memory."""
    parts = [load_slices(split, arrays) for split in POOLED]
    images, masks = (
        np.concatenate([getattr(part, kind) for part in parts]) for kind in ("images", "masks")
    )
    rows_of = {"train": fold.train, "valid": fold.valid}
    return {split: Slices(images[rows], masks[rows]) for split, rows in rows_of.items()}


def tabulate(
    folds: Sequence[Fold], summaries: Mapping[tuple[int, str], dict[str, Any]]
) -> pd.DataFrame:
    """A row a fold and network: sizes of its parts, best epoch, its loss and Dice, and time.

    Args:
        folds: From `divide`.
        summaries: Number of the fold and network → what `train_fold` returned.
    """
    columns = ("parameters", "epochs", "best_epoch", "val_loss", "val_dice", "seconds")
    return pd.DataFrame(
        {
            "fold": fold.number,
            "network": network,
            "train_slices": len(fold.train),
            "valid_slices": len(fold.valid),
            "valid_groups": fold.groups,
            "excluded": fold.excluded,
        }
        | {name: summary[name] for name in columns}
        for fold in folds
        for (number, network), summary in summaries.items()
        if number == fold.number
    )


def page(table: pd.DataFrame, side: int) -> str:
    """The table as Markdown: Dice of each fold and network, differences in pairs, mean and spread.

    Args:
        table: From `tabulate`.
        side: Of the grid, in pixels.
    """
    dice = table.pivot(index="fold", columns="network", values="val_dice")
    first, *others = dict.fromkeys(table["network"])
    columns = {network: dice[network] for network in (first, *others)}
    columns |= {f"{other} − {first}": dice[other] - dice[first] for other in others}
    sizes = table.drop_duplicates("fold").set_index("fold")
    lines = [
        "# Cross-validation",
        "",
        f"{len(dice)} folds over the {sizes['valid_slices'].sum()} slices of train and valid; test "
        "slices took no part. Slices that belong together are in one part.",
        "",
        f"Mean Dice over the slices that a fold is validated on, on the grid of {side}² pixels, at "
        "threshold 0.5. The epoch is the one with the lowest loss on the same slices, which "
        "flatters a little, all networks alike.",
        "",
        f"| {' | '.join(['fold', 'trained on', 'validated on', 'groups', *columns])} |",
        f"|{'---|' * (4 + len(columns))}",
    ]
    for place, one in enumerate(sizes.itertuples()):
        counts = [one.Index, one.train_slices, one.valid_slices, one.valid_groups]
        lines.append(_line([*counts, *(f"{v.iloc[place]:.3f}" for v in columns.values())]))
    lines.append(_line(["mean", "", "", "", *(f"{v.mean():.3f}" for v in columns.values())]))
    lines.append(_line(["SD", "", "", "", *(f"{v.std():.3f}" for v in columns.values())]))
    lines += ["", "Folds share most of what they train on: their spread is no confidence interval."]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
