"""Time and peak memory of validating a data set: cold, unchanged, and many times as large.

    python benchmarks/validation.py FOLDER [--copies 20]

FOLDER has the layout of data/. Copies differ from each other by a byte, so that none is remembered
from another. Prints a Markdown table; seconds mean little without the row beside them.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tumorseg.core import environment
from tumorseg.core.params import ValidateParams, load_params
from tumorseg.data import coco
from tumorseg.data.audit import audit
from tumorseg.data.expectations import check
from tumorseg.data.leakage import find_pairs, mark_leaks
from tumorseg.data.manifest import build_manifest
from tumorseg.reporting.audit_page import write_page


def validate(data: Path, scratch: Path) -> None:
    """Does what the stage does, without Prefect and DVC, and prints seconds by step and MiB."""
    params = load_params(ValidateParams).model_copy(update={"stop_on": []})
    laps, small = {}, scratch / "small.npy"
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        laps[name], last = time.perf_counter() - last, time.perf_counter()

    table = build_manifest(data, params, small)
    lap("manifest")
    pairs = find_pairs(table, small, params.near_duplicate)
    lap("pairs")
    table = mark_leaks(table, pairs, coco.SPLITS)
    findings = check(table, params, scratch / "docs")
    lap("expectations")
    thumbnails = np.load(small, mmap_mode="r")
    figures = audit(table, pairs, thumbnails, findings)
    write_page(figures, table, pairs, thumbnails, data, scratch / "audit.html")
    lap("audit")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"images": len(table), "pairs": len(pairs), "peak": peak, "laps": laps}))


def replicate(source: Path, target: Path, copies: int) -> None:
    """Writes each image `copies` times, each with a byte of its own at the end."""
    for split in coco.SPLITS:
        (target / split).mkdir(parents=True)
        document = json.loads((source / split / coco.ANNOTATIONS).read_text())
        images, annotations = [], []
        for copy in range(copies):
            shift = copy * 10**6
            for image in document["images"]:
                stem, _, suffix = image["file_name"].rpartition(".")
                name = f"{stem}_{copy}.{suffix}"
                content = (source / split / image["file_name"]).read_bytes()
                (target / split / name).write_bytes(content + bytes([copy]))
                images.append(image | {"id": image["id"] + shift, "file_name": name})
            annotations += [
                a | {"id": a["id"] + shift, "image_id": a["image_id"] + shift}
                for a in document["annotations"]
            ]
        changed = document | {"images": images, "annotations": annotations}
        (target / split / coco.ANNOTATIONS).write_text(json.dumps(changed))


def measure(name: str, data: Path, scratch: Path) -> None:
    """Runs `validate` in a process of its own and prints its row of the table."""
    start = time.perf_counter()
    command = [sys.executable, __file__, str(data), "--once", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    row = json.loads(done.stdout.splitlines()[-1])
    steps = " | ".join(f"{seconds:.1f}" for seconds in row["laps"].values())
    own = sum(row["laps"].values())
    print(f"| {name} | {row['images']} | {steps} | {own:.1f} | {wall:.1f} | {row['peak']:.0f} |")


def main() -> None:
    """Measures cold, unchanged and replicated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    for name, value in environment.SILENT.items():
        os.environ[name] = value
    if chosen.once:
        validate(chosen.folder, chosen.once)
        return
    steps = "manifest s | pairs s | expectations s | audit s"
    print(f"| set | images | {steps} | sum s | process s | peak MiB |")
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        measure("cold", chosen.folder, scratch)
        measure("unchanged", chosen.folder, scratch)
        if chosen.copies > 1:
            large = scratch / "large"
            replicate(chosen.folder, large, chosen.copies)
            for name in ("cold", "unchanged"):
                measure(f"{chosen.copies} copies, {name}", large, scratch)
            shutil.rmtree(large)


if __name__ == "__main__":
    main()
