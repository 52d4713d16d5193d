"""How often the drift check is wrong, and what it notices.

`python benchmarks/drift.py` draws new phantom slices for each window and each reference; those of
the window are as they are (false alarms) or shifted. The tumours' area is that of the true masks.

`--data FOLDER` takes the train split of a COCO folder instead. Neighbouring slices form groups;
half of the groups are the reference, and windows come from the other half, each slice a request,
`in order` or `mixed`. `independent` mixes them, and counts every slice as an independent one, as a
plain two-sample test would.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import cache, partial
from itertools import count, islice
from multiprocessing import Pool
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pandas as pd
from common import head, row

from tumorseg.core.params import DriftParams, SplitParams, ValidateParams, load_params
from tumorseg.data import phantom
from tumorseg.data.arrays import read_slice, true_masks
from tumorseg.data.leakage import find_pairs
from tumorseg.data.manifest import build_manifest
from tumorseg.data.splits import find_groups
from tumorseg.imaging.preprocess import Grey, to_grid
from tumorseg.monitoring import drift
from tumorseg.monitoring.ood import NAMES

REFERENCE = 600
WINDOWS = 50  # unshifted ones
SHIFTED = 20  # windows a shift
AN_HOUR = 8  # slices

Looks = tuple[
    dict[str, np.ndarray], float
]  # a slice's statistics by shift, and its share of tumour
Case = tuple[pd.DataFrame, dict[str, dict[str, Any]]]  # a window and its reference


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
NONE, MORE = "none", "tumours twice as frequent"
template = cache(phantom.template_sections)  # read once a process


def looks(grey: Grey, side: int) -> dict[str, np.ndarray]:
    """The statistics of a slice as it is, and under each shift."""
    rows = {name: drift.statistics_of(change(grey), side) for name, change in SHIFTS.items()}
    return rows | {NONE: drift.statistics_of(grey, side)}


def drawn(number: int, side: int, shifts: bool) -> Looks:
    """The statistics of a new phantom slice, and what share of it is tumour."""
    rng = np.random.default_rng([23, number])
    _, grey, tumours = phantom.random_slice(rng, template(), side)
    rows = looks(grey, side) if shifts else {NONE: drift.statistics_of(grey, side)}
    return rows, float(sum(mask.mean() for _, mask in tumours))


def with_more_tumours(number: int, side: int) -> Looks:
    """The same, with two tumours in every slice: twice as many as usual."""
    with patch.object(phantom, "TUMOURS_PER_SLICE", (0.0, 0.0, 1.0)):
        rows, area = drawn(number, side, shifts=False)
    return {MORE: rows[NONE]}, area


def looked_at(path: Path, side: int) -> dict[str, np.ndarray]:
    """The statistics of an image file."""
    return looks(to_grid(read_slice(path), side), side)


def table_of(found: list[Looks], shift: str) -> pd.DataFrame:
    """One row per slice under one shift, as the service would have recorded them."""
    table = pd.DataFrame([rows[shift] for rows, _ in found], columns=NAMES)
    return table.assign(**{drift.AREA: [area for _, area in found]}, warned=0, confidence=0.9)


def case(window: pd.DataFrame, training: pd.DataFrame, groups: Any) -> Case:
    """A window, each slice a request and eight an hour, and the reference of training slices."""
    place = np.arange(len(window))
    hours = [f"2026-01-01T{hour:05d}" for hour in place // AN_HOUR]
    columns = {
        name: drift.describe_column(training[name].to_numpy(float), groups)
        for name in drift.COLUMNS
    }
    return window.assign(request=place, hour=hours), columns


def share(pool: Any, cases: list[Case], params: DriftParams) -> str:
    """In how many windows drift is found, and in how many there are too few slices to tell."""
    results = pool.starmap(partial(drift.compare, params=params), cases, 5)
    found = [result["verdict"] for result in results]
    few = found.count(drift.TOO_FEW)
    return f"{found.count(drift.DRIFT)} of {len(found)}" + (f" ({few} too few)" if few else "")


def windows(shift: str) -> int:
    """How many windows are looked at."""
    return WINDOWS if shift == NONE else SHIFTED


def on_phantoms(pool: Any, params: DriftParams, side: int, sizes: list[int]) -> None:
    """Prints the table of the phantom."""
    longest, numbers = max(sizes), count()

    def fresh(slices: int, draw: Callable[..., Looks], **options: bool) -> list[Looks]:
        numbered = list(islice(numbers, slices))
        return list(pool.map(partial(draw, side=side, **options), numbered, 20))

    references = [table_of(fresh(REFERENCE, drawn, shifts=False), NONE) for _ in range(WINDOWS)]
    served = {NONE: table_of(fresh(WINDOWS * longest, drawn, shifts=False), NONE)}
    rows = fresh(SHIFTED * longest, drawn, shifts=True)
    served |= {name: table_of(rows, name) for name in SHIFTS}
    served[MORE] = table_of(fresh(SHIFTED * longest, with_more_tumours), MORE)
    titles = [f"drift found, {size} slices" for size in sizes]
    head(f"phantom, {REFERENCE} training slices of {side}²", *titles, numbers=len(sizes))
    for name, table in served.items():
        cells = []
        for size in sizes:
            starts = range(0, windows(name) * longest, longest)
            parts = [table.iloc[start : start + size] for start in starts]
            cases = [
                case(part, reference, np.arange(REFERENCE))
                for part, reference in zip(parts, references, strict=False)
            ]
            cells.append(share(pool, cases, params))
        row(name, *cells)


def on_folder(pool: Any, params: DriftParams, data: Path, side: int, sizes: list[int]) -> None:
    """Prints the table of a COCO folder's train split."""
    section, split = load_params(ValidateParams), load_params(SplitParams)
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch, "small.npy")
        manifest = build_manifest(data, section, small)
        pairs = find_pairs(manifest, small, section.near_duplicate)
    usable = manifest[manifest["problem"].isna()].reset_index(drop=True)
    groups = find_groups(usable, pairs, split.shortest_block, split.longest_block)
    usable = usable.assign(split_group=groups)[usable["split"] == "train"]
    usable = usable.sort_values("slice_number", ignore_index=True)
    _, groups = np.unique(usable["split_group"], return_inverse=True)
    areas = [float(mask.mean()) for mask in true_masks(usable)]
    found = pool.map(partial(looked_at, side=side), [data / p for p in usable["path"]], 20)
    rows = list(zip(found, areas, strict=True))
    number = groups.max() + 1
    print(f"{data.name}: {len(usable)} train slices in {number} groups of neighbours\n")
    names = (NONE, "gamma 0.8", "gain × 0.7", "noise of 10 grey values")
    tables = {name: table_of(rows, name) for name in names}
    head("served", "slices", *names, numbers=len(names) + 1)
    for how in ("independent", "mixed", "in order"):
        for size in sizes:
            cells = []
            for name in names:
                rng = np.random.default_rng(5)  # the same windows for each shift
                cases = []
                for _ in range(windows(name)):
                    order = rng.permutation(number)
                    inside = np.isin(groups, order[: number // 2])
                    rest = order[number // 2 :]
                    chosen = np.concatenate([np.flatnonzero(groups == one) for one in rest])[:size]
                    if how != "in order":
                        chosen = rng.permutation(chosen)
                    alike = np.arange(len(groups)) if how == "independent" else groups
                    cases.append(
                        case(tables[name].iloc[chosen], tables[NONE][inside], alike[inside])
                    )
                cells.append(share(pool, cases, params))
            row(how, size, *cells)


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
