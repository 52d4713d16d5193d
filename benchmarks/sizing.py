"""Measures what grows with the data, and multiplies it: the figures of docs/scaling.md.

    python benchmarks/sizing.py [--root FOLDER] [--files 4000]

Takes bytes a slice from a repository in which the job has run, times the comparison of thumbnails
(which is quadratic) at three sizes, and times how DVC records small files. Seconds are CPU time.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import head, row

from tumorseg.data.leakage import SIDE, similar_pairs

FACTORS = (1, 10, 100, 10_000)
SIZES = (2_146, 4_292, 8_584)


def bytes_under(path: Path) -> int:
    """The bytes of all files under a folder, or of one file."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def per_slice(root: Path) -> dict[str, float]:
    """Bytes a slice of what a run keeps, by name."""
    manifest = pd.read_parquet(root / "artifacts/split/manifest.parquet")
    places = {
        "pictures and labels (data/)": root / "data",
        "arrays": root / "artifacts/augment/arrays",
        "DVC's cache": root / ".state/dvc",
        "thumbnails": root / "artifacts/validate/thumbnails.npy",
    }
    found = {name: bytes_under(path) / len(manifest) for name, path in places.items()}
    found["manifest in memory"] = manifest.memory_usage(deep=True).sum() / len(manifest)
    return found | {"slices": len(manifest)}


def similarity_seconds(count: int) -> float:
    """CPU seconds that comparing so many thumbnails with each other takes."""
    thumbnails = np.random.default_rng(0).integers(0, 255, (count, SIDE, SIDE), np.uint8)
    start = time.process_time()
    similar_pairs(thumbnails, np.arange(count), 0.95)
    return time.process_time() - start


def dvc_add(count: int) -> tuple[float, float]:
    """CPU seconds and bytes of DVC's list, a file, for so many files of 4 kB."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "data").mkdir()
        for number in range(count):
            (root / "data" / f"slice_{number:07}.png").write_bytes(number.to_bytes(4, "big") * 1024)
        for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "-q", "init"]):
            subprocess.run(command, cwd=root, check=True, capture_output=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        add = [sys.executable, "-m", "dvc", "-q", "add", "data"]
        subprocess.run(add, cwd=root, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        (listed,) = (root / ".dvc" / "cache").rglob("*.dir")
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return spent / count, listed.stat().st_size / count


def amount(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """A value in the largest unit that it reaches."""
    size, unit = next(pair for pair in units if value >= pair[0] or pair is units[-1])
    return f"{value / size:.3g} {unit}"


BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
SECONDS = ((86_400, "days"), (3_600, "h"), (60, "min"), (1, "s"))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path.cwd())
    parser.add_argument("--files", type=int, default=4_000)
    chosen = parser.parse_args()
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    sizes = per_slice(chosen.root)
    slices = sizes.pop("slices")
    seconds, sizes["DVC's list of files"] = dvc_add(chosen.files)
    times = {count: similarity_seconds(count) for count in SIZES}
    a_pair = times[SIZES[-1]] / SIZES[-1] ** 2
    grown = [slices * factor for factor in FACTORS]
    titles = (f"{factor:,}" for factor in FACTORS)
    head(f"{slices:.0f} slices, times", "a slice", *titles, numbers=len(FACTORS) + 1)
    for name, size in sizes.items():
        row(name, amount(size, BYTES), *(amount(size * count, BYTES) for count in grown))
    adding = (amount(seconds * count, SECONDS) for count in grown)
    row("`dvc add`, CPU", f"{seconds * 1e3:.2g} ms", *adding)
    comparing = (amount(a_pair * count**2, SECONDS) for count in grown)
    row("comparing thumbnails, CPU", "quadratic", *comparing)
    print("\nthumbnails: " + ", ".join(f"{n} in {t:.2f} s" for n, t in times.items()))


if __name__ == "__main__":
    main()
