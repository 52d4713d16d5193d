"""promote: challenger against champion on the test split → the alias `champion`, and why."""

import json
from dataclasses import asdict
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from pipelines._flow import command, stage, step
from pipelines._paths import CANDIDATE, DECISION, REPORTS
from tumorseg.core.files import write_json, write_text
from tumorseg.core.params import PromoteParams, RegisterParams, load_params
from tumorseg.data.manifest import load_manifest
from tumorseg.registry import promotion

PAGE = REPORTS / "promotion.md"


@stage(name="promote")
def promote() -> None:
    """Puts the challenger in the champion's place if it is better and nowhere much worse."""
    params, target = load_params(PromoteParams), load_params(RegisterParams)
    made = step(promotion.promote, retries=2)(
        json.loads(CANDIDATE.read_text()),
        target,
        params,
        load_manifest().query("split == 'test'"),
        Path("data"),
    )
    page = made.page()
    write_text(PAGE, page)
    create_markdown_artifact(key="promotion", markdown=page, description=made.why)
    write_json(DECISION, asdict(made))
    print(f"version {made.challenger['version']}: {made.why}")


if __name__ == "__main__":
    command(promote)
