"""Decisions about the champion, and their history in MLflow.

A decision is one tag of the model version that it is about, so that it is recorded by one call. The
version's description shows the latest one.
"""

import getpass
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import mlflow

from tumorseg.evaluation.metrics import group_name
from tumorseg.registry.runs import connect, lineage
from tumorseg.reporting.wording import fill

ROLLBACK: Final = "rollback"
Kind = Literal["first", "promoted", "refused", "same", "rollback"]
_TAG = "tumorseg.decision."  # followed by its time in nanoseconds
_LONGEST_DESCRIPTION = 5000  # characters, in MLflow's database


def who() -> str:
    """TUMORSEG_USER, or the name of this process's user."""
    try:
        return os.environ.get("TUMORSEG_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


@dataclass(frozen=True)
class Decision:
    """What was decided about a model version.

    Attributes:
        decision: first, promoted, refused, same (the champion's own network, registered again) or
            rollback.
        why: In a sentence, with the caveats.
        challenger: Version, run_id, digest and architecture; on a rollback, of the version that
            becomes champion again.
        champion: The same of the champion before; None if there was none.
        serving: The champion's version afterwards; None if there is none.
        figures: From `gate.figures`; on a rollback, the test Dice of both when registered.
        caveats: From `gate.caveats`.
        test_set: From `data.splits.fingerprint`.
        who: Who decided, or ran the stage.
        when: ISO 8601, UTC.
        lineage: From `runs.lineage`.
    """

    decision: Kind
    why: str
    challenger: dict[str, Any]
    champion: dict[str, Any] | None
    serving: str | None
    figures: dict[str, Any]
    caveats: list[str] = field(default_factory=list)
    test_set: dict[str, Any] = field(default_factory=dict)
    who: str = field(default_factory=who)
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    lineage: dict[str, str] = field(default_factory=lineage)

    @property
    def version(self) -> str:
        """The version that the decision is about."""
        return str(self.challenger["version"])

    @property
    def before(self) -> str | None:
        """The champion's version before."""
        return None if self.champion is None else str(self.champion["version"])

    @property
    def moves(self) -> bool:
        """Whether the alias moves to another version."""
        return self.serving != self.before

    def equals(self, other: "Decision") -> bool:
        """Whether both are equal but for who, when and lineage."""
        both = [asdict(one) | {"who": "", "when": "", "lineage": {}} for one in (self, other)]
        # As JSON, where NaN equals itself.
        return json.dumps(both[0], sort_keys=True) == json.dumps(both[1], sort_keys=True)

    def page(self) -> str:
        """The decision on a challenger as a Markdown page, which lists the caveats apart."""
        verdict = self.why.removesuffix("; ".join(["", *self.caveats]))
        group = group_name(self.test_set["patients_known"])
        return fill("promotion.md", asdict(self) | {"verdict": verdict, "group": group})


def record(name: str, made: Decision, description: str) -> None:
    """Records a decision with its version; `description` is Markdown for MLflow's page."""
    store = connect()
    store.update_model_version(name, made.version, description[:_LONGEST_DESCRIPTION])
    tag = f"{_TAG}{time.time_ns()}"
    store.set_model_version_tag(name, made.version, tag, json.dumps(asdict(made)))


def history(name: str) -> list[Decision]:
    """All decisions about a model's versions, the oldest first."""
    connect()
    found = {
        int(tag.removeprefix(_TAG)): value
        for version in mlflow.search_model_versions(filter_string=f"name = '{name}'")
        for tag, value in version.tags.items()
        if tag.startswith(_TAG)
    }
    return [Decision(**json.loads(value)) for _, value in sorted(found.items())]


def previous(decisions: Sequence[Decision], current: str) -> str | None:
    """The champion before the current one; None if none is on record.

    A rollback undoes what came after its version: after 1, 2, 3 and a rollback to 2, it is 1.

    Args:
        decisions: From `history`.
        current: The champion's version.
    """
    line: list[str] = []
    for made in decisions:
        if not made.moves or made.serving is None:
            continue
        if made.before is not None:  # other than the last where the alias was moved by hand
            line = _cut(line, made.before)
        if made.decision == "same":  # the same network: going back to it would change nothing
            line = line[:-1]
        line = _cut(line, made.serving)
    line = _cut(line, current)
    return line[-2] if len(line) > 1 else None


def _cut(line: list[str], version: str) -> list[str]:
    """The line up to a version, which is added where it is new."""
    return line[: line.index(version) + 1] if version in line else [*line, version]


def rejected(decisions: Sequence[Decision]) -> dict[str, Decision]:
    """The digests that somebody rolled back from, and not to since, each with that rollback."""
    found: dict[str, Decision] = {}
    for made in decisions:
        if made.decision == ROLLBACK:
            if made.champion is not None:
                found[made.champion["digest"]] = made
            found.pop(made.challenger["digest"], None)
    return found
