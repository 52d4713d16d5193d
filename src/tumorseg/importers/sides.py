"""Which side each slice goes to: the source's own, or drawn so that no patient is on two."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.data.coco import SPLITS
from tumorseg.data.splits import assign_splits
from tumorseg.importers.record import Record


def assign(folder: Path, records: Sequence[Record]) -> list[str]:
    """The side of each record.

    Where the source has no splits, groups go as wholes, and a record without a group is one of its
    own. This first pass over the records asks each only for the categories in it.

    Args:
        folder: The source, for messages.
        records: Length N, at least 1.

    Returns:
        train, valid or test, length N; none of them is empty.

    Raises:
        InputError: The source leaves a split empty, or has fewer groups than there are splits.
    """
    stated = [record.split for record in records if record.split is not None]
    if len(stated) == len(records):
        if missing := [split for split in SPLITS if split not in stated]:
            raise InputError(
                f"{folder}: has nothing for {', '.join(missing)}; it needs train, valid and test, "
                "or none of them and the slices are divided here"
            )
        return stated
    if stated:
        outside = next(record.name for record in records if record.split is None)
        raise InputError(
            f"{folder}: {outside} lies outside train, valid and test, which others lie in; move it"
        )
    groups = [
        f"slice {record.name}" if record.group is None else f"group {record.group}"
        for record in records
    ]
    if (count := len(set(groups))) < len(SPLITS):
        raise InputError(
            f"{folder}: has only {count} patient{'s' if count > 1 else ''}, and one must not be in "
            "two of train, valid and test; add patients, or sort the slices into three such folders"
        )
    progress = tqdm(records, "looking for tumours", unit="slice", disable=None)
    strata = ["+".join(sorted(record.categories())) or "none" for record in progress]
    return assign_splits(groups, strata)
