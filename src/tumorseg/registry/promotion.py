"""Who is champion: a challenger is judged and put in its place, or a person puts another back.

Both go intention → file verified → alias moved → done, so that the alias is on a complete version
whose digest was checked wherever the process ends; the same again finishes what was begun.
"""

import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from tumorseg.core.environment import STATE
from tumorseg.core.errors import InputError
from tumorseg.core.files import locked
from tumorseg.core.params import PromoteParams, RegisterParams
from tumorseg.data.splits import fingerprint
from tumorseg.evaluation.paired import p_words
from tumorseg.registry import gate, history
from tumorseg.registry import versions as registry
from tumorseg.reporting.wording import fill

LOCK = STATE / "champion.lock"  # one decision at a time on this machine
PATIENCE_SECONDS = 600
Kind = Literal["first", "promoted", "refused", "same"]


@dataclass(frozen=True)
class Decision:
    """What became of a challenger.

    Attributes:
        decision: first, promoted, refused, or same (the champion's own network, described anew).
        why: In a sentence, the caveats included.
        challenger: Its version, run_id, digest and architecture.
        champion: Version, digest and architecture of the champion before; None where there was
            none.
        serving: The champion's version afterwards; None where there is none.
        figures: From `gate.figures`.
        caveats: From `gate.caveats`.
        test_set: From `data.splits.fingerprint`.
        who: Ran it.
        when: ISO 8601, UTC.
    """

    decision: Kind
    why: str
    challenger: dict[str, Any]
    champion: dict[str, Any] | None
    serving: str | None
    figures: dict[str, Any]
    caveats: list[str]
    test_set: dict[str, Any]
    who: str
    when: str

    def page(self) -> str:
        """The decision as Markdown: what was compared on what, by which margins, and why."""
        # The caveats have a list of their own there.
        verdict = self.why.removesuffix("; ".join(["", *self.caveats]))
        return fill("promotion.md", asdict(self) | {"verdict": verdict})


def promote(
    candidate: dict[str, Any],
    target: RegisterParams,
    params: PromoteParams,
    rows: pd.DataFrame,
    data: Path,
    present: dict[str, Any],
) -> Decision:
    """Judges a challenger, records the decision, and moves the alias where it says so.

    Args:
        candidate: `version` and `digest`, as the register stage noted them.
        target: The register section.
        params: The promote section.
        rows: The manifest's rows of the test split.
        data: The folder to which their paths are relative.
        present: `split` as in reports/split.json, and `data_md5`.

    Raises:
        InputError: The challenger or the champion is incomplete or damaged, or another machine
            moved the alias meanwhile.
    """
    with locked(LOCK, "promote", PATIENCE_SECONDS):
        settle(target)
        current = registry.champion(target.model_name, target.experiment)
        story = history.events(target)
        if current is not None and str(current.version) == candidate["version"]:
            known = _recorded(story, candidate["version"], target)
            if known is not None and known.serving == candidate["version"]:
                return known  # a run before this one was killed after the alias moved
        made = _judge(candidate, target, params, rows, data, present, story)
        last = story[-1] if story else None
        if last is not None and last.state == "done" and not last.moves:
            known = _recorded(story, candidate["version"], target)
            if known is not None and _alike(known, made):
                return known
        _carry_out(made, target)
        return made


def _judge(
    candidate: dict[str, Any],
    target: RegisterParams,
    params: PromoteParams,
    rows: pd.DataFrame,
    data: Path,
    present: dict[str, Any],
    story: list[history.Event],
) -> Decision:
    current = registry.champion(target.model_name, target.experiment)
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = Path(scratch, "challenger"), Path(scratch, "champion")
        challenger = registry.fetch(
            target.model_name, candidate["version"], target.experiment, ours
        )
        if challenger["digest"] != candidate["digest"]:
            raise InputError(
                f"{target.model_name} version {candidate['version']} has the digest "
                f"{challenger['digest']}, but register made {candidate['digest']}: this is "
                "another MLflow; run `dvc repro --force register`"
            )
        champion, same, judged = None, False, None
        scored = gate.served_scores(ours, rows, data)
        if current is not None:
            champion = registry.fetch(
                target.model_name, str(current.version), target.experiment, theirs
            )
            same = all(champion[key] == challenger[key] for key in ("digest", "threshold"))
            judged = scored if same else gate.served_scores(theirs, rows, data)
    figures = gate.figures(scored, judged, params)
    kind, why = _verdict(figures, challenger, champion, same, story)
    test_set = fingerprint(rows)
    caveats = gate.caveats(figures, challenger, champion, present | {"test_set": test_set})
    before = None if champion is None else str(champion["version"])
    return Decision(
        decision=kind,
        why="; ".join([why, *caveats]),
        challenger={k: challenger[k] for k in ("version", "run_id", "digest", "architecture")},
        champion=champion and {k: champion[k] for k in ("version", "digest", "architecture")},
        serving=before if kind == "refused" else str(challenger["version"]),
        figures=figures,
        caveats=caveats,
        test_set=test_set,
        who=history.who(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _verdict(
    figures: dict[str, Any],
    challenger: dict[str, Any],
    champion: dict[str, Any] | None,
    same: bool,
    story: list[history.Event],
) -> tuple[Kind, str]:
    """What becomes of the challenger, and why in a sentence."""
    slices = sum(row["slices"] for row in figures["strata"])
    scored = f"mean Dice {figures['challenger_mean_dice']:.4f} on {slices} test slices"
    if champion is not None and champion["version"] == challenger["version"]:
        return "same", f"it is the champion already ({scored})"
    if same:
        return "same", (
            f"the champion's own network at the same threshold, described anew ({scored}): it "
            "takes the champion's place"
        )
    if gone := history.rejected(story).get(challenger["digest"]):
        return "refused", (
            f"refused: {gone.who} went back from this very network on {gone.when:%Y-%m-%d %H:%M} "
            f"UTC ({gone.why}), and only a person puts it back, by `tumorseg rollback --to "
            f"{challenger['version']}`"
        )
    if champion is None:
        return "first", f"first model, {scored}: it is the champion, since there was none"
    gap = figures["difference"]
    compared = (
        f"{scored} against {figures['champion_mean_dice']:.4f} of the champion, version "
        f"{champion['version']} ({gap['mean']:+.4f}, 95% CI {gap['low']:+.4f} to "
        f"{gap['high']:+.4f}, {p_words(gap['p_value'])}, {gap['groups']} groups)"
    )
    against = gate.objections(figures)
    if against:
        return "refused", f"refused, {compared}: {'; '.join(against)}"
    return "promoted", f"promoted, {compared}: more than promote.min_gain and within all margins"


def _carry_out(made: Decision, target: RegisterParams) -> None:
    gap = made.figures["difference"] or {}
    figures = {
        "challenger_mean_dice": made.figures["challenger_mean_dice"],
        "champion_mean_dice": made.figures["champion_mean_dice"],
        "gain": gap.get("mean"),
        "gain_low": gap.get("low"),
        "gain_high": gap.get("high"),
    }
    event = history.intend(
        target,
        made.decision,
        made.challenger,
        made.champion,
        made.serving,
        made.why,
        {name: value for name, value in figures.items() if value is not None},
    )
    history.attach(target, event, asdict(made), made.page())
    if event.moves:
        move(target, event)
    said = f"{made.when}, {made.who}: {made.why}"
    registry.describe(target.model_name, event.version, target.experiment, said)
    history.close(target, event)


def move(target: RegisterParams, event: history.Event) -> None:
    """Moves the alias as an event says, once the version's file is verified.

    Raises:
        InputError: The version is incomplete or damaged, or the alias is no longer where the event
            found it.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch:
            registry.fetch(target.model_name, event.version, target.experiment, Path(scratch))
        now = registry.champion(target.model_name, target.experiment)
        if (None if now is None else str(now.version)) != event.before:
            raise InputError(
                f"the champion changed while this was decided, from version {event.before} to "
                f"{now and now.version}: run it again"
            )
    except InputError:
        history.close(target, event, carried_out=False)
        raise
    registry.promote(target.model_name, event.version, target.experiment)


def settle(target: RegisterParams) -> None:
    """Closes intentions that a killed process left: the alias tells what became of them."""
    current = registry.champion(target.model_name, target.experiment)
    version = None if current is None else str(current.version)
    for event in history.events(target):
        if event.state != "intended":
            continue
        if event.moves and event.after == version:
            history.close(target, event)
        elif event.before != version:
            history.close(target, event, carried_out=False)


def _recorded(story: list[history.Event], version: str, target: RegisterParams) -> Decision | None:
    """The last decision about a challenger, if it can still be read."""
    about = [e for e in story if e.version == version and e.state == "done"]
    if not about or about[-1].what == history.ROLLBACK:
        return None
    found = history.attached(target, about[-1])
    return None if found is None else Decision(**found)


def _alike(one: Decision, other: Decision) -> bool:
    """Whether two decisions say the same, whoever took them when."""
    first, second = (asdict(each) | {"who": "", "when": ""} for each in (one, other))
    return first == second
