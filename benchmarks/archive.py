"""Segments an archive with one and with two workers, kills one of two midway, compares all masks.

    python benchmarks/archive.py --model FOLDER [--data FOLDER]

The data folder holds pictures at any depth; by default TUMORSEG_REAL_DATA/brain-tumor-boxes. Each
run is `python -m pipelines.segment` in a temporary folder, all at one Prefect server. Prints a
Markdown table; exit status 1 if masks are missing or differ.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml
from common import REPOSITORY, head, row, workplace
from joblib import cpu_count

from tumorseg.inference.predict import plan


class Run(NamedTuple):
    """What one run came to."""

    seconds: float  # of the whole command
    rate: float  # slices a second, from the first mask to the last
    digests: dict[str, str]  # mask → SHA-256


def masks(output: Path) -> list[Path]:
    """The masks that are there."""
    return sorted(output.rglob("*_mask.png"))


def configure(workers: int, threads: int) -> None:
    """Writes the params.yaml of the next run."""
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["segment"] |= {"scheduler": None, "workers": workers, "threads": threads}
    Path("params.yaml").write_text(yaml.safe_dump(params))


def run(data: Path, model: Path, output: Path, kill_at: int | None = None) -> Run:
    """Runs the command; at `kill_at` masks, one of its workers is killed."""
    command = [sys.executable, "-m", "pipelines.segment", str(data), "--output", str(output)]
    log = Path("log")
    start = time.monotonic()
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [*command, "--model", str(model)], stdout=printed, stderr=subprocess.STDOUT
        )
        if kill_at is not None:
            kill_a_worker(process, output, kill_at)
        status = process.wait()
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"the command failed:\n{log.read_text()[-4000:]}")
    found = masks(output)
    times = [path.stat().st_mtime for path in found]
    return Run(
        seconds,
        (len(found) - 1) / (max(times) - min(times)),
        {
            path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in found
        },
    )


def kill_a_worker(process: subprocess.Popen[bytes], output: Path, at: int) -> None:
    """Sends SIGKILL to the busiest worker, once there are so many masks."""
    while process.poll() is None:
        if len(masks(output)) >= at:
            children = psutil.Process(process.pid).children(recursive=True)
            max(children, key=lambda child: child.cpu_times().user).kill()
            print(f"killed a worker at {len(masks(output))} masks", file=sys.stderr)
            return
        time.sleep(0.2)
    sys.exit(f"the command ended before a worker could be killed:\n{Path('log').read_text()}")


def main() -> int:
    """Prints the table and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = os.environ.get("TUMORSEG_REAL_DATA")
    parser.add_argument(
        "--data", type=Path, default=Path(known) / "brain-tumor-boxes" if known else None
    )
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    chosen = parser.parse_args()
    if chosen.data is None or not chosen.data.is_dir():
        sys.exit("name a folder of pictures: --data FOLDER, or set TUMORSEG_REAL_DATA")
    data, model = chosen.data.resolve(), chosen.model.resolve()
    count = len(plan([data]))
    with workplace() as root:
        return compare(data, model, root, count)


def compare(data: Path, model: Path, root: Path, count: int) -> int:
    """Makes all runs."""
    cores = cpu_count()
    runs: dict[str, Run] = {}
    names = {
        "one": ("1 worker, 1 thread", 1, 1),
        "all": (f"1 worker, {cores} threads", 1, cores),
        "two": ("2 workers, 1 thread each", 2, 1),
        "killed": ("the same, one killed midway", 2, 1),
    }
    print(f"{count} pictures, {cores} cores\n")
    head("run", "command (s)", "slices a second", "the same, without start and end", "masks")
    for name, (title, workers, threads) in names.items():
        configure(workers, threads)
        one = run(data, model, root / name, count // 2 if name == "killed" else None)
        runs[name] = one
        same = "identical" if one.digests == runs["one"].digests else "DIFFERENT"
        speeds = (f"{value:.1f}" for value in (one.seconds, count / one.seconds, one.rate))
        row(title, *speeds, f"{len(one.digests)}, {same}")
    two = runs["two"]
    for name in ("one", "all"):
        other = runs[name]
        print(
            f"\n2 workers are {other.seconds / two.seconds:.2f} times as fast as {names[name][0]} "
            f"({two.rate / other.rate:.2f} without start and end)"
        )
    expected = runs["one"].digests
    whole = all(len(one.digests) == count and one.digests == expected for one in runs.values())
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
