"""drift: are the slices that are served now still like those that were trained on?

`python -m pipelines.drift --now` looks once; `--cron "0 6 * * *"` stays and looks every day at 6.
With `drift.retrain: true` drift starts the flow `retrain`, once within `drift.cooldown_hours`.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from pipelines._flow import main, scheduled, stage, step
from pipelines.retrain import retrain
from tumorseg.core.environment import PACKAGED, STATE, STATISTICS
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json, write_text
from tumorseg.core.params import DriftParams, load_params
from tumorseg.monitoring.drift import DRIFT, FILE, SHOWN, compare, load, read_window, sentence
from tumorseg.monitoring.statistics import VARIABLE
from tumorseg.registry import bento, runs
from tumorseg.reporting.wording import fill

REPORT = Path("reports/drift.json")
PAGE = Path("reports/drift.md")
STARTED = STATE / "drift.json"  # when drift last started retraining


@stage(name="drift")
def drift() -> str:
    """Compares the window with the served model's reference, reports, and may start retraining."""
    params, model = load_params(DriftParams), bento.packaged()
    if model is None:
        raise InputError(f"{PACKAGED}: is missing or damaged; type `make run` first")
    now = datetime.now(UTC)
    reference = step(runs.read_artifact, retries=2)(model["run_id"], FILE)
    record = Path(os.environ.get(VARIABLE) or STATISTICS)
    window, others = step(read_window)(record, model["digest"], now, params.window_hours)
    if not record.exists():
        print(f"{record}: does not exist yet; `tumorseg serve` writes it, or set {VARIABLE}")
    result = step(compare)(window, load(reference), params)
    result |= {
        "time": now.isoformat(timespec="seconds"),
        "model": {key: model[key] for key in ("version", "digest")},
        "others": others,
    }
    result["sentence"] = sentence(result)
    write_json(REPORT, result)
    words = {"alpha": params.alpha, "window_hours": params.window_hours, "shown": SHOWN}
    page = fill("drift.md", result | words)
    write_text(PAGE, page)
    create_markdown_artifact(page, key="drift", description=result["sentence"])
    print(result["sentence"])
    if result["verdict"] == DRIFT and params.retrain:
        reason = result["sentence"].rstrip(".")
        retrain_once(now, timedelta(hours=params.cooldown_hours), reason[0].lower() + reason[1:])
    return str(result["verdict"])


def retrain_once(now: datetime, cooldown: timedelta, because: str) -> None:
    """Starts `retrain`, unless drift did so less than a cooldown ago."""
    last = json.loads(STARTED.read_text())["started"] if STARTED.exists() else None
    if last and now - datetime.fromisoformat(last) < cooldown:
        print(f"retraining was started at {last}: not again within drift.cooldown_hours")
        return
    # Before it runs: one that fails shall not be tried again at every look.
    write_json(STARTED, {"started": now.isoformat(timespec="seconds")})
    retrain(because=because)


if __name__ == "__main__":
    main(scheduled, drift)
