"""The Prefect server of a checkout: one for all commands that need it, as long as one does."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY
from tumorseg.core import prefect_server as server
from tumorseg.core.environment import PREFECT_URL_FILE, answers
from tumorseg.core.errors import InputError
from tumorseg.core.processes import VARIABLE, marked

USER = """
import sys
from tumorseg.core import environment
environment.set_up()
from tumorseg.core.prefect_server import prefect_server
with prefect_server() as url:
    print(url, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.long
def test_two_commands_at_once_share_a_server_and_the_last_one_ends_it(tmp_path) -> None:
    (tmp_path / "dvc.yaml").touch()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    users = [
        subprocess.Popen(
            [sys.executable, "-c", USER],
            cwd=tmp_path,
            env=kept | {"PYTHONPATH": str(REPOSITORY / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        first, second = (user.stdout.readline().strip() for user in users)
        assert first == second and answers(f"{first}/health")
        users[0].communicate("\n", timeout=60)
        assert users[0].returncode == 0 and answers(f"{first}/health")
        users[1].communicate("\n", timeout=60)
        assert users[1].returncode == 0 and not answers(f"{first}/health")
    finally:
        for user in users:
            user.kill()
    assert not (tmp_path / PREFECT_URL_FILE).exists()


@pytest.fixture
def noted(tmp_path, monkeypatch) -> Iterator[subprocess.Popen]:
    """A process that an earlier command started as this checkout's server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    mark = {VARIABLE: str(server.LOG.resolve())}
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env=os.environ | mark
    )
    server.FOLDER.mkdir(parents=True)
    PREFECT_URL_FILE.write_text("http://127.0.0.1:1/api")
    yield child
    child.kill()
    child.wait()


def test_a_server_that_is_slow_to_answer_is_waited_for(noted, monkeypatch) -> None:
    replies = iter([False, False, True])
    monkeypatch.setattr(server, "answers", lambda url: next(replies))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")  # as `set_up` leaves it
    with server.prefect_server() as url:
        assert url == "http://127.0.0.1:1/api" and noted.poll() is None
    assert noted.wait(20) is not None and not PREFECT_URL_FILE.exists()  # its last user ended it


@pytest.mark.parametrize(("reply", "error"), [(False, InputError), (None, KeyboardInterrupt)])
def test_a_start_that_fails_or_is_broken_off_leaves_no_server(
    noted, monkeypatch, reply, error
) -> None:
    def answers(url: str) -> bool:
        if reply is None:
            raise KeyboardInterrupt
        return reply

    monkeypatch.setattr(server, "answers", answers)
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 1)
    with pytest.raises(error), server.prefect_server():
        pass
    assert noted.wait(20) is not None and not PREFECT_URL_FILE.exists()
    assert not marked(str(server.LOG.resolve()))
