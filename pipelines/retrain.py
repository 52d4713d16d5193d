"""retrain: `dvc repro` on a schedule, a task a stage.

`python -m pipelines.retrain --now` runs once; `--cron "0 3 * * *"` stays and runs at 3 every night.
The champion changes only if promote finds the challenger better on the test split.
"""

import argparse
import json
import subprocess
import sys

from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines._flow import main, stage, step
from pipelines.promote import DECISION
from tumorseg.errors import InputError, StageError
from tumorseg.params import RetrainParams, load_params
from tumorseg.server import prefect_server

STAGES = ("validate", "split", "augment", "train", "evaluate", "register", "promote", "package")


def reproduce(name: str) -> None:
    """Brings one stage up to date; DVC decides whether it has to run.

    Raises:
        StageError: The stage failed; its own message is in the log above.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", name]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line.rstrip())
    if process.returncode:
        raise StageError(f"stage {name} failed; later stages did not run")


@stage(name="retrain")
def retrain() -> None:
    """Runs every stage that is out of date, in order, and says what became of the champion."""
    params = load_params(RetrainParams)
    for name in STAGES:
        step(reproduce, params.retries, params.retry_delay_seconds, f"repro {name}")(name)
    print(f"champion: {json.loads(DECISION.read_text())['why']}")


def command() -> None:
    """Runs the flow once, or serves it on a schedule until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.retrain", description=__doc__)
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--now", action="store_true", help="run once, and end")
    when.add_argument("--cron", help="stay, and run at these times, such as '0 3 * * *'")
    chosen = parser.parse_args()
    # Prefect read its settings when it was imported, before this server had an address.
    with prefect_server() as url, temporary_settings({PREFECT_API_URL: url}):
        if chosen.now:
            retrain()
            return
        try:
            # One at a time: two runs would fight over the workspace.
            # An earlier one paused its schedule when it stopped; this one takes it up again.
            retrain.serve(name="scheduled", cron=chosen.cron, global_limit=1, paused=False)
        except ValueError as error:
            raise InputError(f"--cron {chosen.cron!r}: {error}") from None


if __name__ == "__main__":
    main(command)
