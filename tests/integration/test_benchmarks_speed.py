"""benchmarks/speed.py, end to end at a small size: its table."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.long


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "speed.py"), *options]
    command += ["--params", str(REPOSITORY / "params.yaml"), "--threads", "1", "--device", "cpu"]
    paths = {"PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | paths
    )


def test_the_table_has_a_row_a_network_and_figures_that_agree(tmp_path) -> None:
    options = (
        "--size 64 --batch 4 --rounds 1 --turn 0.05 --seconds 0.5 --rates 1e-3 1e-2 --average 0.5"
    )
    done = run(tmp_path, *options.split(), "--phantom", "8")
    assert done.returncode == 0, done.stderr
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "|" in line]
    header, _, *rows = lines
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    ours = ["our U-Net", "our Attention U-Net"]
    pretrained = [f"{title}, pretrained" for title in ours]
    assert list(table) == [*ours, *pretrained, "MONAI UNet", "MONAI AttentionUnet"]
    for row in table.values():
        assert row["layout"] in ("channels_last", "contiguous")
        *measured, trained = header[2:]
        figures = [float(row[name].split(" ")[0].rstrip("%")) for name in measured]
        assert all(math.isfinite(value) and value > 0 for value in figures)
        assert trained == "Dice after 0.5 s (epochs, rate)"
        mean, micro, epochs, rate = map(float, re.findall(r"[\d.]+", row[trained]))
        assert 0 <= mean <= 1 and 0 <= micro <= 1 and epochs > 0
        assert rate in (1e-3, 1e-2)
    assert table["MONAI UNet"]["of MONAI UNet"] == "1.00"
    counts = [table[title]["parameters M"] for title in (*ours, *pretrained)]
    assert counts == ["1.93", "1.97", "3.53", "3.56"]  # as the sets of experiments.yaml have them
    assert "GFLOP/s forward and backward" in done.stdout
    assert "drawing alone: " in done.stdout
