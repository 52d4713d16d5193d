"""The commands about the champion, with real bentos and a real service."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import mlflow
import pytest
from PIL import Image

from tests.support import toy_registry
from tests.support.serving_model import disc, encode
from tests.support.serving_process import ready, stop
from tests.support.toy_registry import GOOD, MIDDLING, POOR
from tumorseg.core import environment
from tumorseg.core.prefect_server import free_port
from tumorseg.data.manifest import load_manifest
from tumorseg.registry import bento, promotion, versions

pytestmark = pytest.mark.long
COMMAND = [sys.executable, "-c", "from tumorseg.cli import main; main()"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A repository with three champions, one after the other, of which the last is packaged."""
    root = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, value in environment.defaults(root).items():
            patch.setenv(name, value)
        patch.setenv("TUMORSEG_USER", "jane")
        (root / environment.STATE).mkdir()
        toy_registry.write_repository(root)
        target, params, package = toy_registry.params(root)
        rows = load_manifest()
        digests = {}
        for model in (POOR, MIDDLING, GOOD):
            candidate = toy_registry.register(root, target, model)
            promotion.promote(candidate, target, params, rows, Path("data"))
            digests[candidate["version"]] = candidate["digest"]
        bento.package_champion(target, package)
        yield SimpleNamespace(root=root, target=target, digests=digests)
        mlflow.set_tracking_uri(None)  # before the patch ends, since it unsets the variable


def tumorseg(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)


def packaged() -> dict:
    return json.loads(bento.PACKAGED.read_text())


def alias(place) -> str:
    return str(versions.champion(place.target.model_name).version)


def test_rollback_packages_the_champion_before_and_is_in_the_history(place) -> None:
    assert (alias(place), packaged()["digest"]) == ("3", place.digests["3"])
    done = tumorseg("rollback", "--reason", "misses | small ones")
    assert done.returncode == 0, done.stderr
    assert (alias(place), packaged()["digest"]) == ("2", place.digests["2"])
    first, second, third = done.stdout.splitlines()
    assert f"version 3 (sha256 {place.digests['3']}) → version 2" in first
    assert place.digests["2"] in first and place.digests["2"] in second
    assert re.match(r"took \d+\.\d s", third)

    told = tumorseg("history").stdout.splitlines()
    assert len(told) == 6 and "jane" in told[-1]
    assert "| rollback 2 | 3 → 2 | misses \\| small ones |" in told[-1]
    assert "| first 1 | none → 1 |" in told[2] and "(+" in told[3]


def test_what_is_served_is_what_the_registry_says(place) -> None:
    """As after a kill between the alias and the bento: `serve` and `predict` package it first."""
    versions.set_champion(place.target.model_name, "1")
    assert packaged()["version"] != "1"
    (place.root / "a.png").write_bytes(encode(Image.fromarray(disc())))
    log, port = place.root / "serve.log", free_port(0)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        assert ready(process, url, 120), log.read_text()
        served = httpx.get(f"{url}/version", timeout=10).json()["model"]
    finally:
        stop(process)
    assert served["digest"] == place.digests["1"] == packaged()["digest"]
    assert "the champion is version 1" in log.read_text()

    versions.set_champion(place.target.model_name, "3")
    done = tumorseg("predict", "a.png")
    assert done.returncode == 0 and "the champion is version 3" in done.stderr
    assert "model: version 3" in done.stdout and place.digests["3"][:12] in done.stdout
    again = tumorseg("predict", "a.png", "--overwrite")
    assert again.returncode == 0 and again.stderr == ""  # there is nothing to package
