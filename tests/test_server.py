"""The Prefect server of a checkout: one for all commands that need it, as long as one does."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tumorseg.environment import PREFECT_URL_FILE, answers

USER = """
import sys
from tumorseg import environment
environment.set_up()
from tumorseg.server import prefect_server
with prefect_server() as url:
    print(url, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
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
        assert first == second and answers(first)
        users[0].communicate("\n", timeout=60)
        assert users[0].returncode == 0 and answers(first)
        users[1].communicate("\n", timeout=60)
        assert users[1].returncode == 0 and not answers(first)
    finally:
        for user in users:
            user.kill()
    assert not (tmp_path / PREFECT_URL_FILE).exists()
