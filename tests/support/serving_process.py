"""The service for tests: as a real `bentoml serve`, and in this process."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from tumorseg.core.service_settings import Settings

SOURCE = "tumorseg.serving.service:TumorSegmentation"


def start(tag: str, log: Path, **more: str) -> tuple[subprocess.Popen[bytes], str]:
    """Starts `bentoml serve` for a bento's tag or `SOURCE`; returns it and its address."""
    port = 10_000 + secrets.randbelow(20_000)  # below those that the system gives away meanwhile
    command = [sys.executable, "-m", "bentoml", "serve", tag, "--host", "127.0.0.1"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=os.environ | more,
            cwd=log.parent,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return process, f"http://127.0.0.1:{port}"


def status(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=2).status_code
    except httpx.HTTPError:
        return None  # nothing listens there yet


def ready(process: subprocess.Popen[bytes], url: str, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if status(f"{url}/readyz") == 200:
            return True
        time.sleep(0.2)
    return False


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def in_process(model: Path, settings: Settings | None = None) -> Iterator[TestClient]:
    """An application of its own without a server, whose model is loaded."""
    from tumorseg.serving.service import Application, create_service

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUMORSEG_MODEL", str(model))
        app = create_service(Application(settings or Settings())).to_asgi()
        with TestClient(app, base_url="http://localhost") as client:
            while client.get("/readyz").status_code != 200:
                assert client.get("/livez").status_code == 200, "the model could not be loaded"
                time.sleep(0.05)
            yield client
