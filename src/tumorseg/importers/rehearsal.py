"""What a retraining would do, found out without doing any of it."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tumorseg.core import git as versions
from tumorseg.core.environment import STATE
from tumorseg.core.errors import InputError
from tumorseg.core.params import RetrainParams, SplitParams, ValidateParams, load_params
from tumorseg.data import dataset
from tumorseg.importers import inbox, intake


def rehearse(stages: Sequence[str], data: Path = intake.DATA) -> str:
    """Says what would come in, what would be quarantined and why, and which stages would run.

    Batches are looked at one by one against the data set as it is, in a temporary folder.

    Args:
        stages: In their order.
        data: The data set.
    """
    params = load_params(RetrainParams)
    lines = []
    if intake.unfinished(data):
        lines.append("would first finish a take-in that was cut off")
    ready, waiting = inbox.batches(Path(params.inbox), params.settle_seconds)
    lines += [
        f"{folder}: left alone, changed less than retrain.settle_seconds ago" for folder in waiting
    ]
    comes = False
    for batch in ready:
        said, joins = _batch(batch, params, data)
        lines += said
        comes = comes or joins
    if not (ready or waiting):
        lines.append(f"{params.inbox}/: nothing there")
    try:
        if ready:
            versions.refuse_changed(f"{data.name}.dvc")
        dataset.refuse_to_lose(data)
    except InputError as error:
        lines.append(f"nothing would come in or run: {error}")
    changed: dict[str, Any] = json.loads(dataset.dvc("status", "--json").strip() or "{}")
    stale = [name for name in stages if any(key.split("@")[0] == name for key in changed)]
    lines.append(f"out of date by `dvc status`: {', '.join(stale) or 'no stage'}")
    if comes:
        lines.append(f"with the new data: {stages[0]}, and what follows where its input changes")
    elif stale:
        lines.append("and what follows these where its input changes")
    return "\n".join(lines)


def _batch(batch: Path, params: RetrainParams, data: Path) -> tuple[list[str], bool]:
    sections = load_params(ValidateParams), load_params(SplitParams), params
    with tempfile.TemporaryDirectory(dir=STATE) as scratch:
        try:
            unpacked, verdicts = intake.examine(batch, Path(scratch), *sections, data)
        except InputError as error:
            return [f"{batch}: would not come in: {error}"], False
    joins = verdicts[verdicts["reason"].isna()]
    refused = verdicts[verdicts["reason"].notna()]
    sides = joins["side"].value_counts()
    lines = [
        f"{batch} ({unpacked.kind}, {unpacked.slices} slices): {sides.get('train', 0)} would go "
        f"to train, {sides.get('valid', 0)} to valid, {len(refused)} to {params.quarantine}/"
    ]
    lines += [f"  {name}: {why}" for name, why in zip(refused["name"], refused["why"], strict=True)]
    return lines, len(joins) > 0
