"""`bentoml serve` itself refuses to listen beyond loopback without a key."""

import subprocess
import sys

import pytest

from tests.support.serving_model import write_model
from tests.support.serving_process import SOURCE
from tumorseg.serving.keys import OPEN_VARIABLE, VARIABLE


@pytest.mark.slow
def test_bentoml_itself_does_not_open_it(tmp_path, monkeypatch) -> None:
    for name in (VARIABLE, OPEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUMORSEG_MODEL", str(write_model(tmp_path / "model")))
    monkeypatch.setenv("BENTOML_HOST", "0.0.0.0")  # the same to BentoML as --host
    command = [sys.executable, "-m", "bentoml", "serve", SOURCE, "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "0.0.0.0" in line and VARIABLE in line
    assert "Traceback" not in done.stderr
