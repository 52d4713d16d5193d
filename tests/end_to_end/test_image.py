"""`make image` with stand-ins for the container engines and for BentoML."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TAG = 'if [ "$1" = package ]; then echo tumorseg-service:abc; fi'
NONE = f"{TAG}; [ $1 = env ] || exit 1".replace("echo tumorseg-service:abc", "echo no bento >&2")


def make_image(
    root: Path, engines: list[str], answer: str = TAG
) -> subprocess.CompletedProcess[str]:
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in engines:
        script(programs / name, "exit 1")
    script(programs / "tumorseg", answer)
    script(programs / "bentoml", 'echo "bentoml $*"')
    return subprocess.run(
        [shutil.which("make"), "-f", REPOSITORY / "Makefile", "-o", "setup", "image"],
        cwd=root,
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
    )


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("engines", "chosen"), [(["podman"], "podman"), (["podman", "docker"], "docker")]
)
def test_the_engine_that_is_there_makes_it(tmp_path, engines, chosen) -> None:
    done = make_image(tmp_path, engines)
    assert done.returncode == 0, done.stderr
    assert f"bentoml containerize --backend {chosen} tumorseg-service:abc\n" in done.stdout
    assert f"run it: {chosen} run" in done.stdout


@pytest.mark.parametrize(
    ("engines", "answer", "message"),
    [([], TAG, "neither docker nor podman is on PATH"), (["podman"], NONE, "no bento")],
)
def test_without_an_engine_or_a_package_it_says_so(tmp_path, engines, answer, message) -> None:
    done = make_image(tmp_path, engines, answer)
    assert done.returncode != 0 and "bentoml" not in done.stdout
    assert message in done.stderr
