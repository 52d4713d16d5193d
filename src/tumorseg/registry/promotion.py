"""Who is champion: a challenger is judged and promoted, or a person rolls back to another version.

Both verify the version's file, record the decision, and last move the alias, each by one call: the
alias is on a complete version wherever the process ends, and the same command finishes it.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities.model_registry import ModelVersion

from tumorseg.core.environment import STATE
from tumorseg.core.errors import InputError
from tumorseg.core.params import PackageParams, PromoteParams, RegisterParams
from tumorseg.data.splits import fingerprint
from tumorseg.evaluation.paired import p_words
from tumorseg.registry import bento, gate, versions
from tumorseg.registry.decisions import (
    ROLLBACK,
    Decision,
    Kind,
    history,
    previous,
    record,
    rejected,
)

LOCK = STATE / "champion.lock"  # one decision at a time on this machine
PROMOTE_SECONDS, ROLLBACK_SECONDS = 600, 60  # for which each waits for the lock


def promote(
    candidate: dict[str, Any],
    target: RegisterParams,
    params: PromoteParams,
    rows: pd.DataFrame,
    data: Path,
) -> Decision:
    """Judges a challenger, records the decision, and moves the alias if it is promoted.

    Args:
        candidate: `version` and `digest`, as the register stage noted them.
        target: The register section.
        params: The promote section.
        rows: The manifest's rows of the test split.
        data: The folder to which their paths are relative.

    Raises:
        InputError: The challenger or the champion is incomplete or damaged, or another machine
            moved the alias meanwhile.
    """
    name = target.model_name
    with versions.locked(LOCK, PROMOTE_SECONDS):
        decisions, current = history(name), versions.champion(name)
        if current is not None and str(current.version) == candidate["version"]:
            about = [made for made in decisions if made.version == candidate["version"]]
            if about and about[-1].decision != ROLLBACK:
                return about[-1]  # a run before this one was killed after it moved the alias
        made = _judge(name, candidate, current, params, rows, data, decisions)
        _unchanged(name, made)
        if decisions and decisions[-1].equals(made):
            made = decisions[-1]  # recorded by a run that was killed, or decided again
        else:
            record(name, made, made.page())
        if made.moves:
            versions.set_champion(name, made.version)
        return made


def roll_back(
    target: RegisterParams, section: PackageParams, to: str | None, reason: str | None
) -> tuple[Decision, dict[str, Any]]:
    """Gives the alias to an earlier version and packages it, or ends an interrupted rollback.

    Args:
        target: The register section.
        section: The package section.
        to: The version; the champion before the present one if None.
        reason: Why, in a person's words.

    Returns:
        The decision, and what is packaged now.

    Raises:
        InputError: There is no such version or no earlier champion, its file is damaged, or it is
            the champion already.
    """
    name = target.model_name
    with versions.locked(LOCK, ROLLBACK_SECONDS):
        current = versions.champion(name)
        if current is None:
            raise InputError("MLflow has no champion to roll back from; type `make run` first")
        decisions = history(name)
        last = decisions[-1] if decisions and decisions[-1].decision == ROLLBACK else None
        if (
            last is not None
            and last.serving == str(current.version)
            and to in (None, last.serving)
            and not bento.is_packaged(current)
        ):
            print(f"finishing the rollback that {last.who} began at {last.when}", file=sys.stderr)
            return last, bento.package_champion(target, section)
        made = _rollback(name, current, decisions, to, reason)
        with tempfile.TemporaryDirectory() as scratch:
            versions.fetch(name, made.version, Path(scratch))  # verifies its digest
        _unchanged(name, made)
        if last is not None and (last.before, last.serving) == (made.before, made.serving):
            made = last  # recorded by a run that was killed before it moved the alias
        else:
            record(name, made, f"Rolled back to by {made.who}, {made.when}: {made.why}")
        versions.set_champion(name, made.version)
        return made, bento.package_champion(target, section)


def _rollback(
    name: str, current: ModelVersion, decisions: list[Decision], to: str | None, reason: str | None
) -> Decision:
    version = str(current.version)
    after = to or previous(decisions, version)
    if after is None:
        raise InputError(
            f"no champion before version {version} is on record: name one with --to VERSION "
            f"({versions.complete_versions(name)})"
        )
    if after == version:
        raise InputError(f"version {version} is the champion already: nothing was changed")
    model = versions.info_of(name, after)
    left = json.loads(current.tags.get(versions.INFO_TAG, "{}"))
    dice = {"before_test_dice": left.get("test", {}), "after_test_dice": model["test"]}
    return Decision(
        decision=ROLLBACK,
        why=reason or "no reason given",
        challenger=_identity(model) | {"version": after},
        champion=_identity(left) | {"version": version},
        serving=after,
        figures={key: test.get("mean_dice") for key, test in dice.items()},
    )


def _identity(info: dict[str, Any]) -> dict[str, Any]:
    return {key: info.get(key) for key in ("version", "run_id", "digest", "architecture")}


def _unchanged(name: str, made: Decision) -> None:
    """Raises InputError if the alias is no longer where the decision found it."""
    now = versions.champion(name)
    version = None if now is None else str(now.version)
    if version != made.before:
        raise InputError(
            f"the champion changed while this was decided, from version {made.before} to "
            f"{version}: run it again"
        )


def _judge(
    name: str,
    candidate: dict[str, Any],
    current: ModelVersion | None,
    params: PromoteParams,
    rows: pd.DataFrame,
    data: Path,
    decisions: list[Decision],
) -> Decision:
    champion, same, theirs = None, False, None
    with tempfile.TemporaryDirectory() as scratch:
        folder, other = Path(scratch, "challenger"), Path(scratch, "champion")
        challenger = versions.fetch(name, candidate["version"], folder)
        if challenger["digest"] != candidate["digest"]:
            raise InputError(
                f"{name} version {candidate['version']} has the digest {challenger['digest']}, but "
                f"register made {candidate['digest']}: this is another MLflow; run `dvc repro "
                "--force register`"
            )
        ours = gate.served_scores(folder, rows, data)
        if current is not None:
            champion = versions.fetch(name, str(current.version), other)
            same = all(champion[key] == challenger[key] for key in ("digest", "threshold"))
            theirs = ours if same else gate.served_scores(other, rows, data)
    figures = gate.figures(ours, theirs, params)
    kind, why = _verdict(figures, challenger, champion, same, rejected(decisions))
    test_set = fingerprint(rows)
    caveats = gate.caveats(figures, challenger, champion, test_set)
    before = None if champion is None else str(champion["version"])
    return Decision(
        decision=kind,
        why="; ".join([why, *caveats]),
        challenger=_identity(challenger),
        champion=None if champion is None else _identity(champion),
        serving=before if kind == "refused" else str(challenger["version"]),
        figures=figures,
        caveats=caveats,
        test_set=test_set,
    )


def _verdict(
    figures: dict[str, Any],
    challenger: dict[str, Any],
    champion: dict[str, Any] | None,
    same: bool,
    gone: dict[str, Decision],
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
    if rollback := gone.get(challenger["digest"]):
        return "refused", (
            f"refused: {rollback.who} went back from this very network at {rollback.when} "
            f"({rollback.why}), and only a person puts it back, by `tumorseg rollback --to "
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
