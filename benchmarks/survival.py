"""Kills `dvc repro` at random moments, types it again, and compares what it comes to.

    python benchmarks/survival.py [--kills 20] [--epochs 12]

Works on a small phantom set in a temporary copy of the repository; needs what `make` installs.
Prints a Markdown table; exit status 1 if a rerun fails or comes to other figures.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import time
from pathlib import Path

from common import head, row, run, small_repository, workplace

RESULTS = ("reports/metrics.json", "reports/per_slice.csv", "artifacts/train/*/*.safetensors")
REPRO = [sys.executable, "-m", "dvc", "repro", "--no-run-cache", "evaluate"]


def forget(root: Path) -> None:
    """Removes what a run made, so that the next one starts from the data."""
    for name in ("artifacts", "reports", "dvc.lock", ".state/train"):
        path = root / name
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


def digest(root: Path) -> str:
    """One hash of the figures and the weights; run ids and times are not among them."""
    found = hashlib.sha256()
    for pattern in RESULTS:
        for path in sorted(root.glob(pattern)):
            found.update(path.read_bytes())
    return found.hexdigest()


def main() -> int:
    """Prints a row a kill and counts the equal ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    epochs = {"epochs": chosen.epochs, "early_stopping_patience": chosen.epochs}
    with workplace() as root:
        small_repository(root, 64, {"train": 24, "valid": 8, "test": 8}, **epochs)
        return compare(root, chosen.kills, random.Random(chosen.seed))


def compare(root: Path, kills: int, chance: random.Random) -> int:
    """Runs once unbroken, then `kills` times with an interruption; returns the exit status."""
    start = time.monotonic()
    status, printed = run(REPRO)
    if status:
        sys.exit(f"the unbroken run failed:\n{printed[-4000:]}")
    whole, expected = time.monotonic() - start, digest(root)
    figures = json.loads((root / "reports" / "metrics.json").read_text())["test"]
    print(f"unbroken: U-Net {figures['unet']['mean_dice']}, {expected[:12]}, {whole:.0f} s\n")
    head("kill", "at, of an unbroken run", "during", "rerun", "figures and weights")
    equal = number = 0
    while number < kills:
        forget(root)
        moment = chance.uniform(0.02, 0.98)
        status, printed = run(REPRO, moment * whole)
        if status is not None:  # it was faster than the first run: another moment
            continue
        number += 1
        stages = [line.split("'")[1] for line in printed.splitlines() if line[:7] == "Running"]
        status, printed = run(REPRO)
        resumed = "resumed" if "going on after epoch" in printed else "from the stage's start"
        same = status == 0 and digest(root) == expected
        equal += same
        state = "equal" if same else f"DIFFERENT (status {status})"
        row(number, f"{moment:.0%}", stages[-1] if stages else "dvc", resumed, state)
        if status:
            print(printed[-4000:], file=sys.stderr)
    print(f"\n{equal} of {kills} equal")
    return 0 if equal == kills else 1


if __name__ == "__main__":
    sys.exit(main())
