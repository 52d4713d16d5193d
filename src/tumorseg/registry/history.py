"""The story of the champions in MLflow: a run a decision, with who, when, why and the figures.

A run that is not finished is an intention: whoever was to carry it out has not come to its end.
"""

import getpass
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Run, RunTag

from tumorseg.core.params import RegisterParams
from tumorseg.registry.runs import client, lineage

ROLLBACK = "rollback"
DECISION, PAGE = "decision.json", "promotion.md"
STATES = {"RUNNING": "intended", "FINISHED": "done", "KILLED": "dropped"}


@dataclass(frozen=True)
class Event:
    """One decision about the champion.

    Attributes:
        id: Its MLflow run.
        when: It was taken, in UTC.
        who: Took it.
        what: first, promoted, refused, same or rollback.
        version: Of the model that it is about: the challenger, or what is put back.
        before: The champion's version before, None where there was none.
        after: The champion's version once it is carried out.
        digest: Of `version`.
        before_digest: Of `before`.
        why: In a sentence.
        figures: Figure → value.
        state: intended, done, or dropped (never carried out).
    """

    id: str
    when: datetime
    who: str
    what: str
    version: str
    before: str | None
    after: str | None
    digest: str
    before_digest: str | None
    why: str
    figures: dict[str, float]
    state: str

    @property
    def moves(self) -> bool:
        """Whether the alias is on another version once it is carried out."""
        return self.after != self.before


def who() -> str:
    """Who acts: TUMORSEG_USER, else the name of this process's user."""
    try:
        return os.environ.get("TUMORSEG_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def intend(
    target: RegisterParams,
    what: str,
    model: dict[str, Any],
    champion: dict[str, Any] | None,
    after: str | None,
    why: str,
    figures: dict[str, float],
) -> Event:
    """Records a decision that is about to be carried out; the same one twice is one event.

    Args:
        target: The register section.
        what: first, promoted, refused, same or rollback.
        model: `version` and `digest` of what it is about.
        champion: Those of the champion before.
        after: The champion's version afterwards.
        why: In a sentence.
        figures: Figure → value.
    """
    store, number = client(_experiment(target))
    before = None if champion is None else str(champion["version"])
    tags = {
        "stage": "promote",
        "model": target.model_name,
        "what": what,
        "version": str(model["version"]),
        "before": before or "",
        "after": after or "",
        "digest": str(model["digest"]),
        "before_digest": "" if champion is None else str(champion["digest"]),
        "who": who(),
        "why": why,
        # What MLflow's page shows as the run's user and description.
        "mlflow.user": who(),
        "mlflow.note.content": why,
    } | lineage()
    begun = [
        e
        for e in events(target)
        if e.state == "intended"
        and (e.what, e.version, e.before) == (what, tags["version"], before)
    ]
    if begun:
        run_id = begun[-1].id
    else:
        title = (
            f"{what}: {before or 'none'} → {after}"
            if after != before
            else f"{what}: {tags['version']}"
        )
        run_id = store.create_run(number, tags=tags, run_name=title).info.run_id
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in figures.items()]
    store.log_batch(run_id, metrics, tags=[RunTag(name, tag) for name, tag in tags.items()])
    return _event(store.get_run(run_id))


def attach(target: RegisterParams, event: Event, decision: dict[str, Any], page: str) -> None:
    """Keeps the whole decision and its page with an event."""
    store, _ = client(_experiment(target))
    store.log_dict(event.id, decision, DECISION)
    store.log_text(event.id, page, PAGE)


def attached(target: RegisterParams, event: Event) -> dict[str, Any] | None:
    """The decision that `attach` kept; None where there is none."""
    store, _ = client(_experiment(target))
    if DECISION not in [file.path for file in store.list_artifacts(event.id)]:
        return None
    path = mlflow.artifacts.download_artifacts(run_id=event.id, artifact_path=DECISION)
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def close(target: RegisterParams, event: Event, *, carried_out: bool = True) -> None:
    """Records that an intention was carried out, or that it never will be."""
    store, _ = client(_experiment(target))
    store.set_terminated(event.id, "FINISHED" if carried_out else "KILLED")


def events(target: RegisterParams) -> list[Event]:
    """All that has been decided, the oldest first."""
    store, number = client(_experiment(target))
    wanted = f"tags.model = '{target.model_name}'"
    found: list[Run] = []
    token: str | None = None
    while True:
        page = store.search_runs(
            [number], wanted, order_by=["attributes.start_time ASC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            return [_event(run) for run in found]


def previous(story: Sequence[Event], current: str) -> str | None:
    """The champion before the present one, None where the story knows none.

    A rollback takes back what came after the version that it puts back: of 1, 2, 3, then a
    rollback to 2, the next one leads to 1.

    Args:
        story: From `events`.
        current: The champion's version.
    """
    line: list[str] = []
    for event in story:
        if event.state == "dropped" or not event.moves or event.after is None:
            continue
        if event.state == "intended" and event.after != current:
            continue
        if event.before is not None and event.before not in line[-1:]:
            line = _cut(line, event.before)  # moved by hand, or before there was a story
        if event.what == "same":  # the same network: going back to it would change nothing
            line = line[:-1]
        line = _cut(line, event.after)
    line = _cut(line, current)
    return line[-2] if len(line) > 1 else None


def _cut(line: list[str], version: str) -> list[str]:
    """The line up to a version, which is added where it is new."""
    return line[: line.index(version) + 1] if version in line else [*line, version]


def rejected(story: Sequence[Event]) -> dict[str, Event]:
    """Digests that a person went back from, and did not put back since, with that rollback."""
    found: dict[str, Event] = {}
    for event in story:
        if event.what == ROLLBACK and event.state != "dropped":
            if event.before_digest:
                found[event.before_digest] = event
            found.pop(event.digest, None)
    return found


def _experiment(target: RegisterParams) -> str:
    # One of its own, so that its page in MLflow shows nothing but the story.
    return f"{target.experiment}-champions"


def _event(run: Run) -> Event:
    tags = run.data.tags
    return Event(
        id=run.info.run_id,
        when=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        who=tags["who"],
        what=tags["what"],
        version=tags["version"],
        before=tags["before"] or None,
        after=tags["after"] or None,
        digest=tags["digest"],
        before_digest=tags["before_digest"] or None,
        why=tags["why"],
        figures=dict(run.data.metrics),
        state=STATES.get(run.info.status, "dropped"),
    )
