"""Decisions about the champion, and their history in MLflow.

A decision is one tag of the model version that it is about: it is recorded by one call, whole or
not at all. The version's description shows the latest one to people.
"""

import getpass
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from tumorseg.registry.runs import connect, lineage
from tumorseg.reporting.wording import fill

ROLLBACK: Final = "rollback"
Kind = Literal["first", "promoted", "refused", "same", "rollback"]
_TAG = "tumorseg.decision."  # followed by its time in nanoseconds
_LONGEST_DESCRIPTION = 5000  # characters, in MLflow's database


def who() -> str:
    """Who acts: TUMORSEG_USER, else the name of this process's user."""
    try:
        return os.environ.get("TUMORSEG_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Decision:
    """What was decided about a model version.

    Attributes:
        decision: first, promoted, refused, same (the champion's own network, described anew) or
            rollback.
        why: In a sentence, the caveats included.
        challenger: Version, run_id, digest and architecture of the challenger; on a rollback, of
            what is put back.
        champion: Version, digest and architecture of the champion before; None where there was
            none.
        serving: The champion's version afterwards; None where there is none.
        figures: From `gate.figures`; on a rollback, the test Dice of both when registered.
        caveats: From `gate.caveats`.
        test_set: From `data.splits.fingerprint`.
        who: Decided, or ran the stage that did.
        when: ISO 8601, UTC.
        lineage: Code, data and dependencies, from `runs.lineage`.
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
    when: str = field(default_factory=_now)
    lineage: dict[str, str] = field(default_factory=lineage)

    @property
    def version(self) -> str:
        """The version that it is about."""
        return str(self.challenger["version"])

    @property
    def before(self) -> str | None:
        """The champion's version before."""
        return None if self.champion is None else str(self.champion["version"])

    @property
    def moves(self) -> bool:
        """Whether it gives the alias to another version."""
        return self.serving != self.before

    def equals(self, other: "Decision") -> bool:
        """Whether both decide the same for the same reasons, no matter who ran them when."""
        both = [asdict(one) | {"who": "", "when": "", "lineage": {}} for one in (self, other)]
        # As JSON, in which a p-value that is not a number equals itself.
        return json.dumps(both[0], sort_keys=True) == json.dumps(both[1], sort_keys=True)

    def page(self) -> str:
        """The decision on a challenger as Markdown: what was compared, by which margins, why."""
        # The caveats have a list of their own there.
        verdict = self.why.removesuffix("; ".join(["", *self.caveats]))
        return fill("promotion.md", asdict(self) | {"verdict": verdict})


def record(name: str, made: Decision, description: str) -> None:
    """Records a decision with its version; `description` is Markdown for MLflow's page."""
    store = connect()
    store.update_model_version(name, made.version, description[:_LONGEST_DESCRIPTION])
    tag = f"{_TAG}{time.time_ns()}"
    store.set_model_version_tag(name, made.version, tag, json.dumps(asdict(made)))


def history(name: str) -> list[Decision]:
    """All decisions about a model's versions, the oldest first."""
    found: dict[int, str] = {}
    store, token = connect(), None
    while True:
        page = store.search_model_versions(f"name = '{name}'", page_token=token)
        for version in page:
            for tag, value in version.tags.items():
                if tag.startswith(_TAG):
                    found[int(tag.removeprefix(_TAG))] = value
        if not (token := page.token):
            return [Decision(**json.loads(found[moment])) for moment in sorted(found)]


def previous(decisions: Sequence[Decision], current: str) -> str | None:
    """The champion before the present one, None where there is none on record.

    A rollback undoes what came after the version that it puts back: of 1, 2, 3, then a rollback
    to 2, the next one leads to 1.

    Args:
        decisions: From `history`.
        current: The champion's version.
    """
    line: list[str] = []
    for made in decisions:
        if not made.moves or made.serving is None:
            continue
        if made.before is not None and made.before not in line[-1:]:
            # The alias was moved by hand, or the decision before this one was never carried out.
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
    """Digests that a person rolled back from, and did not put back since, with that rollback."""
    found: dict[str, Decision] = {}
    for made in decisions:
        if made.decision == ROLLBACK:
            if made.champion is not None:
                found[made.champion["digest"]] = made
            found.pop(made.challenger["digest"], None)
    return found
