"""Kills `dvc repro` at random moments, types it again, and compares what it comes to.

    python benchmarks/survival.py [--kills 20] [--epochs 12]

Works on a small phantom set in a temporary copy of the repository; needs what `make` installs.
Prints a Markdown table; exit status 1 if a rerun fails or comes to other figures.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import head, row, small_repository

from tumorseg.core import environment
from tumorseg.core.prefect_server import prefect_server

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


def interrupted(root: Path, seconds: float) -> str | None:
    """Runs `dvc repro`, kills it and all its children after some time.

    Returns:
        During what stage, or None where it had ended by then.
    """
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            REPRO, cwd=root, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            try:
                process.wait(seconds)
                return None
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        lines = output.read().decode().splitlines()
    stages = [line.split("'")[1] for line in lines if line.startswith("Running")]
    return stages[-1] if stages else "dvc"


def main() -> int:
    """Prints a row a kill and counts the equal ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "repository")
        root.mkdir()
        os.chdir(root)
        (root / environment.STATE).mkdir()
        os.environ |= environment.defaults(root)
        os.environ["PYTHONPATH"] = f"{root / 'src'}:{root}"
        os.environ["PATH"] = environment.search_path()
        small = {"train": 24, "valid": 8, "test": 8}
        small_repository(
            root, 64, small, epochs=chosen.epochs, early_stopping_patience=chosen.epochs
        )
        with prefect_server():
            return compare(root, chosen.kills, random.Random(chosen.seed))


def compare(root: Path, kills: int, chance: random.Random) -> int:
    """Runs once unbroken, then `kills` times with an interruption; returns the exit status."""
    start = time.monotonic()
    first = subprocess.run(REPRO, cwd=root, capture_output=True, text=True, check=False)
    if first.returncode:
        sys.exit(f"the unbroken run failed:\n{(first.stdout + first.stderr)[-4000:]}")
    whole, expected = time.monotonic() - start, digest(root)
    figures = json.loads((root / "reports" / "metrics.json").read_text())["test"]
    print(f"unbroken: U-Net {figures['unet']['mean_dice']}, {expected[:12]}, {whole:.0f} s\n")
    head("kill", "at, of an unbroken run", "during", "rerun", "figures and weights")
    equal = number = 0
    while number < kills:
        forget(root)
        moment = chance.uniform(0.02, 0.98)
        during = interrupted(root, moment * whole)
        if during is None:  # it was faster than the first run: another moment
            continue
        number += 1
        again = subprocess.run(REPRO, cwd=root, capture_output=True, text=True, check=False)
        printed = again.stdout + again.stderr  # Prefect's log goes to the latter
        resumed = "resumed" if "going on after epoch" in printed else "from the stage's start"
        same = again.returncode == 0 and digest(root) == expected
        equal += same
        state = "equal" if same else f"DIFFERENT (status {again.returncode})"
        row(number, f"{moment:.0%}", during, resumed, state)
        if again.returncode:
            print(printed[-4000:], file=sys.stderr)
    print(f"\n{equal} of {kills} equal")
    return 0 if equal == kills else 1


if __name__ == "__main__":
    sys.exit(main())
