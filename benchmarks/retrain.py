"""A schedule that fires for real: a first champion, better data, then worse data.

    PYTHONPATH=. python benchmarks/retrain.py

In a small phantom repository of few training slices, `python -m pipelines.retrain --cron
"* * * * *"` makes a first champion; then a batch of many good slices arrives in its inbox, and once
that was taken in, a larger one whose labels lie 30 pixels beside the tumours. Prints the artifacts
of the three runs as Prefect's API gives them. Exit status 1 unless the second run promoted and the
third left the champion alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.retraining import git, make_repository, phantom_batch, variables
from tumorseg.core.prefect_server import prefect_server
from tumorseg.data.phantom import make_phantom

PATIENCE_SECONDS = 3600
EXPECTED = [
    "# Retraining: the first champion",
    "# Retraining: a new champion",
    "# Retraining: the champion stays",
]


def ask(url: str, what: str, body: dict[str, Any]) -> Any:
    """A POST to Prefect's API, and what it answers; None while it does not."""
    try:
        return httpx.post(f"{url}/{what}", json=body, timeout=30).raise_for_status().json()
    except httpx.HTTPError:
        return None


def artifacts(url: str) -> list[str]:
    """The pages of all retrainings, oldest first."""
    found = ask(url, "artifacts/filter", {"artifacts": {"key": {"any_": ["retrain"]}}}) or []
    return [each["data"] for each in sorted(found, key=lambda each: each["created"])]


def wait_for(done: Any, process: subprocess.Popen[bytes]) -> None:
    """Waits until `done()` is true, as long as the schedule is there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit("the schedule ended or took too long; its output is above")
        time.sleep(2)


def run(root: Path) -> tuple[list[str], list[str]]:
    """Three runs by schedule; returns their pages and a line a run."""
    inbox = root / "inbox"
    inbox.mkdir()
    os.environ |= variables(root)
    os.chdir(root)
    with prefect_server() as url:
        command = [sys.executable, "-m", "pipelines.retrain", "--cron", "* * * * *"]
        process = subprocess.Popen(command)
        try:
            # Each batch arrives while a run trains, so that the next run finds it at rest.
            wait_for((root / "artifacts" / "train").exists, process)
            before = git(root, "log", "data.dvc")
            phantom_batch(inbox / "good", 80, seed=7)
            wait_for(lambda: git(root, "log", "data.dvc") != before, process)
            phantom_batch(inbox / "bad", 160, seed=8, shift=30)
            wait_for(lambda: len(artifacts(url)) > 2, process)
            query = {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED", "PENDING"]}}}}
            runs = ask(url, "flow_runs/filter", query | {"sort": "START_TIME_ASC"})
        finally:
            process.terminate()
            process.wait(120)
        return artifacts(url)[:3], [
            f"{each['name']}: due {each['expected_start_time']}, began {each['start_time']}, "
            f"{each['state_name']}, {each['parameters'].get('because', '')}"
            for each in runs
            if each["deployment_id"]
        ]


def main() -> int:
    """Prints the pages; 0 if the runs ended as they should."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, "phantom")
        make_phantom(data, counts={"train": 6, "valid": 6, "test": 40}, size=96)
        root = Path(temporary, "repository")
        pages, lines = run(make_repository(root, data, whole=True, epochs=20))
        os.chdir("/")
    print("\n".join(["", *lines]))
    for number, page in enumerate(pages, start=1):
        print(f"\n---- artifact {number} ----\n{page}")
    titles = [page.splitlines()[0] for page in pages]
    return 0 if titles == EXPECTED else 1


if __name__ == "__main__":
    sys.exit(main())
