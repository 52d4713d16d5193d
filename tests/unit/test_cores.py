"""How many threads run the network: what the machine has, or what a container is given of it."""

import os

import onnxruntime
import pytest

from tests.support.serving_model import write_model
from tumorseg.core.cores import usable_cores
from tumorseg.inference import predictor


@pytest.fixture(autouse=True)
def eight(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def write(root, files: dict[str, str]):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "groups", root / "own"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"own": "0::/\n", "groups/cpu.max": "max 100000\n"}, 8),
        ({"own": "0::/\n", "groups/cpu.max": "200000 100000\n"}, 2),
        ({"own": "0::/\n", "groups/cpu.max": "150000 100000\n"}, 2),
        ({"own": "0::/\n", "groups/cpu.max": "20000 100000\n"}, 1),
        ({"own": "0::/\n", "groups/cpu.max": "1600000 100000\n"}, 8),
        (
            {
                "own": "0::/a/b\n",
                "groups/a/cpu.max": "300000 100000\n",
                "groups/a/b/cpu.max": "max 100000\n",
            },
            3,
        ),
        ({"groups/cpu/cpu.cfs_quota_us": "-1\n", "groups/cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"groups/cpu/cpu.cfs_quota_us": "250000\n", "groups/cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_a_quota_counts_as_well(tmp_path, files, cores) -> None:
    assert usable_cores(*write(tmp_path, files)) == cores


@pytest.mark.parametrize(("asked", "given"), [(0, 5), (3, 3)])
def test_the_network_gets_so_many_threads(tmp_path, monkeypatch, asked, given) -> None:
    seen = []

    def session(data: bytes, options: onnxruntime.SessionOptions, **more: object):
        seen.append(options.intra_op_num_threads)
        return made(data, options, **more)

    made = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(predictor, "usable_cores", lambda: 5)
    predictor.Predictor(write_model(tmp_path), asked)
    assert seen == [given]
