"""How often the drift check is wrong, and what it notices.

`python benchmarks/drift.py` draws phantom slices anew for each window and for its reference; those
of the window are as they are (false alarms) or shifted. The tumours' area is that of the true
masks, as a perfect network would find them.

`--data FOLDER` takes the train split of a COCO folder instead: neighbouring slices, all alike,
form groups; half of the groups are the reference and windows come from the other half, so that no
slice of a window has a neighbour in the reference. `served` says how the window's slices came:
`independent` takes every slice for an independent one, as a plain two-sample test would.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count, islice
from multiprocessing import Pool
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pandas as pd

from tumorseg.core.params import DriftParams, SplitParams, ValidateParams, load_params
from tumorseg.data import phantom
from tumorseg.data.arrays import read_slice, true_masks
from tumorseg.data.leakage import find_pairs
from tumorseg.data.manifest import build_manifest
from tumorseg.data.splits import find_groups
from tumorseg.imaging.preprocess import Grey, to_grid
from tumorseg.monitoring.drift import (
    AREA,
    COLUMNS,
    DRIFT,
    TOO_FEW,
    describe_column,
    judge,
    statistics_of,
)
from tumorseg.monitoring.ood import NAMES

REFERENCE = 600
WINDOWS = 50  # unshifted ones
SHIFTED = 20  # windows a shift
AN_HOUR = 8  # slices
STUDY = 13  # numbers; the published set has 3 064 slices of 233 patients


def toned(grey: Grey) -> Grey:
    """The contrast of another scanner: mid-grey steeper, ends flatter; brighter on the left."""
    curve = 0.5 + 0.5 * np.tanh(3 * (grey / 255 - 0.45)) / np.tanh(1.5)
    coil = np.linspace(1.1, 0.9, grey.shape[1])
    return (255 * np.clip(curve * coil, 0, 1)).round().astype(np.uint8)


def noisy(grey: Grey) -> Grey:
    """Noise of 10 grey values, on a grid of 256 pixels a side at most."""
    side = min(256, len(grey))
    noise = np.random.default_rng(int(grey.sum())).normal(0, 10, (side, side))
    noise = cv2.resize(noise, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.clip(grey + noise, 0, 255).astype(np.uint8)


def exposed(grey: Grey, gamma: float, gain: float) -> Grey:
    """A slice in another exposure."""
    return (255 * np.clip(gain * (grey / 255) ** gamma, 0, 1)).round().astype(np.uint8)


SHIFTS: dict[str, Callable[[Grey], Grey]] = {
    "gamma 0.8": partial(exposed, gamma=0.8, gain=1.0),
    "gamma 0.95": partial(exposed, gamma=0.95, gain=1.0),
    "gain × 0.7": partial(exposed, gamma=1.0, gain=0.7),
    "noise of 10 grey values": noisy,
    "blur, 0.6% of the side": lambda grey: cv2.GaussianBlur(grey, (0, 0), 0.006 * len(grey)),
    "half resolution": lambda grey: cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=3),
    "another scanner's contrast": toned,
    "moved by 5%": lambda grey: np.roll(grey, round(0.05 * len(grey)), axis=1),
}
AS_THEY_ARE, MORE = "none", "tumours twice as frequent"


def row_of(grey: Grey, side: int) -> dict[str, np.ndarray]:
    """The statistics of a slice under each shift."""
    rows = {name: statistics_of(change(grey), side) for name, change in SHIFTS.items()}
    return rows | {AS_THEY_ARE: statistics_of(grey, side)}


def drawn(number: int, side: int, shifts: bool) -> tuple[dict[str, np.ndarray], float]:
    """The statistics of a fresh phantom slice, and what share of it is tumour."""
    rng = np.random.default_rng([23, number])
    _, grey, tumours = phantom.random_slice(rng, sections(), side)
    rows = row_of(grey, side) if shifts else {AS_THEY_ARE: statistics_of(grey, side)}
    return rows, float(sum(mask.mean() for _, mask in tumours))


def with_more_tumours(number: int, side: int) -> tuple[dict[str, np.ndarray], float]:
    """The same, with two tumours in every slice: twice as many as usual."""
    with patch.object(phantom, "TUMOURS_PER_SLICE", (0.0, 0.0, 1.0)):
        rows, area = drawn(number, side, shifts=False)
    return {MORE: rows[AS_THEY_ARE]}, area


_sections: dict[str, Any] = {}


def sections() -> dict[str, Any]:
    """The template's sections, read once a process."""
    if not _sections:
        _sections.update(phantom.template_sections())
    return _sections


def known(table: pd.DataFrame, groups: Any) -> dict[str, dict[str, Any]]:
    """A reference of rows."""
    return {name: describe_column(table[name].to_numpy(float), groups) for name in COLUMNS}


def table_of(rows: list[tuple[dict[str, np.ndarray], float]], shift: str) -> pd.DataFrame:
    """Rows of one shift."""
    table = pd.DataFrame([each[shift] for each, _ in rows], columns=NAMES)
    return table.assign(**{AREA: [area for _, area in rows]})


def came(window: pd.DataFrame, requests: Any, hours: Any | None = None) -> pd.DataFrame:
    """Adds what the service would have noted; eight slices an hour."""
    hours = np.arange(len(window)) // AN_HOUR if hours is None else hours
    named = [f"2026-01-01T{hour:05d}" for hour in hours]
    return window.assign(request=requests, hour=named, warned=0, confidence=0.9)


def verdict(case: tuple[pd.DataFrame, dict[str, dict[str, Any]]], params: DriftParams) -> str:
    """The verdict on a window and its reference."""
    return str(judge(*case, params)["verdict"])


def share(found: list[str]) -> str:
    """Drift found in so many windows, and in how many there were too few slices to tell."""
    few = found.count(TOO_FEW)
    return f"{found.count(DRIFT)} of {len(found)}" + (f" ({few} too few)" if few else "")


def on_phantoms(pool: Any, params: DriftParams, side: int, sizes: list[int]) -> None:
    """Prints the table of the phantom."""
    longest, numbers = max(sizes), count()

    def fresh(slices: int, draw: Callable[[int], Any]) -> list[Any]:
        return list(pool.map(draw, list(islice(numbers, slices)), 20))

    plain = partial(drawn, side=side, shifts=False)
    references = [
        known(table_of(fresh(REFERENCE, plain), AS_THEY_ARE), np.arange(REFERENCE))
        for _ in range(WINDOWS)
    ]
    served = {AS_THEY_ARE: table_of(fresh(WINDOWS * longest, plain), AS_THEY_ARE)}
    rows = fresh(SHIFTED * longest, partial(drawn, side=side, shifts=True))
    served |= {name: table_of(rows, name) for name in SHIFTS}
    rows = fresh(SHIFTED * longest, partial(with_more_tumours, side=side))
    served[MORE] = table_of(rows, MORE)
    heads = [f"drift found, {size} slices" for size in sizes]
    print(f"\n| phantom, {REFERENCE} training slices of {side}² | {' | '.join(heads)} |")
    print("|---" + "|--:" * len(sizes) + "|")
    for name, table in served.items():
        cells = []
        for size in sizes:
            cases = [
                (came(table.iloc[k * longest : k * longest + size], np.arange(size)), references[k])
                for k in range(WINDOWS if name == AS_THEY_ARE else SHIFTED)
            ]
            cells.append(share(pool.map(partial(verdict, params=params), cases, 5)))
        print(
            f"| {'**none**' if name == AS_THEY_ARE else name} | {' | '.join(cells)} |", flush=True
        )


def looked_at(path: Path, side: int) -> dict[str, np.ndarray]:
    """The statistics of an image file."""
    return row_of(to_grid(read_slice(path), side), side)


def on_folder(pool: Any, params: DriftParams, data: Path, side: int, sizes: list[int]) -> None:
    """Prints the table of a COCO folder's train side."""
    with tempfile.TemporaryDirectory() as scratch:
        section, split = load_params(ValidateParams), load_params(SplitParams)
        small = Path(scratch, "small.npy")
        manifest = build_manifest(data, section, small)
        pairs = find_pairs(manifest, small, section.near_duplicate)
    usable = manifest[manifest["problem"].isna()].reset_index(drop=True)
    groups = find_groups(usable, pairs, split.shortest_block, split.longest_block)
    usable = usable.assign(split_group=groups)[usable["split"] == "train"]
    usable = usable.sort_values("slice_number", ignore_index=True)
    _, groups = np.unique(usable["split_group"], return_inverse=True)
    studies = usable["slice_number"].to_numpy(int) // STUDY
    areas = [float(mask.mean()) for mask in true_masks(usable)]
    looks = pool.map(partial(looked_at, side=side), [data / p for p in usable["path"]], 20)
    rows = list(zip(looks, areas, strict=True))
    tables = {name: table_of(rows, name) for name in (AS_THEY_ARE, *SHIFTS)}
    sizes_of = np.bincount(groups)
    print(
        f"\n{data.name}: {len(usable)} train slices in {len(sizes_of)} groups of neighbours "
        f"(median {np.median(sizes_of):.0f}); half of the groups are the reference"
    )
    names = (AS_THEY_ARE, "gamma 0.8", "gain × 0.7", "noise of 10 grey values")
    print("| served | slices | " + " | ".join(names) + " |\n|---|--:" + "|--:" * len(names)
          + "|")  # fmt: skip
    for how in ("independent", "one by one, mixed", "one by one, in order", "studies", "groups"):
        for size in sizes:
            cells = []
            for name in names:
                rng = np.random.default_rng(5)  # the same windows for each shift
                windows = WINDOWS if name == AS_THEY_ARE else SHIFTED
                cases = [
                    _case(rng, tables[AS_THEY_ARE], tables[name], groups, studies, how, size)
                    for _ in range(windows)
                ]
                cells.append(share(pool.map(partial(verdict, params=params), cases, 5)))
            print(f"| {how} | {size} | {' | '.join(cells)} |", flush=True)


def _case(
    rng: np.random.Generator,
    plain: pd.DataFrame,
    shifted: pd.DataFrame,
    groups: np.ndarray,
    studies: np.ndarray,
    how: str,
    size: int,
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """A window of the groups that the reference does not have."""
    order = rng.permutation(groups.max() + 1)
    inside = np.isin(groups, order[: len(order) // 2])
    rest = np.concatenate([np.flatnonzero(groups == group) for group in order[len(order) // 2 :]])
    chosen = rest[:size]
    alone = np.arange(int(inside.sum())) if how == "independent" else groups[inside]
    requests: Any = np.arange(size)
    if how == "independent" or how == "one by one, mixed":
        chosen = rng.permutation(chosen)
    elif how == "studies":
        requests = studies[chosen] + 10_000 * groups[chosen]
    elif how == "groups":
        requests = groups[chosen]
    return came(shifted.iloc[chosen], requests[: len(chosen)]), known(plain[inside], alone)


def main() -> None:
    """Prints a table of the phantom, or of a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="train/, valid/, test/ in place of phantoms")
    parser.add_argument("--size", type=int, default=128, help="side of the grid, pixels")
    parser.add_argument("--slices", type=int, nargs="+", default=[100, 300], help="of a window")
    chosen = parser.parse_args()
    params = load_params(DriftParams)
    cv2.setNumThreads(1)
    with Pool() as pool:
        if chosen.data:
            on_folder(pool, params, chosen.data, chosen.size, chosen.slices)
        else:
            on_phantoms(pool, params, chosen.size, chosen.slices)


if __name__ == "__main__":
    main()
