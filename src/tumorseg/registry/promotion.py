"""Promotion of a challenger, and rollback to an earlier champion.

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
from tumorseg.evaluation.metrics import counted
from tumorseg.evaluation.paired import p_words
from tumorseg.registry import bento, decisions, gate, versions
from tumorseg.registry.decisions import ROLLBACK, Decision, Kind

LOCK = STATE / "champion.lock"  # one decision at a time on this machine
PROMOTE_SECONDS, ROLLBACK_SECONDS = 600, 60  # for which each waits for the lock


def promote(
    candidate: dict[str, Any],
    target: RegisterParams,
    params: PromoteParams,
    rows: pd.DataFrame,
    data: Path,
) -> Decision:
    """Compares a challenger with the champion, records the decision, and may move the alias.

    Args:
        candidate: `version` and `digest`, as the register stage wrote them.
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
        past, current = decisions.history(name), versions.champion(name)
        if current is not None and str(current.version) == candidate["version"]:
            about = [made for made in past if made.version == candidate["version"]]
            if about and about[-1].decision != ROLLBACK:
                return about[-1]  # an earlier run was killed after it moved the alias
        made = _decide(name, candidate, current, params, rows, data, past)
        _check_unchanged(name, made)
        if past and past[-1].equals(made):
            made = past[-1]  # recorded by a run that was killed, or repeated
        else:
            decisions.record(name, made, made.page())
        if made.moves:
            versions.set_champion(name, made.version)
        return made


def roll_back(
    target: RegisterParams, section: PackageParams, to: str | None, reason: str | None
) -> tuple[Decision, dict[str, Any]]:
    """Moves the alias to an earlier version and packages it, or ends an interrupted rollback.

    Args:
        target: The register section.
        section: The package section.
        to: The version; the champion before the current one if None.
        reason: For the history.

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
        past = decisions.history(name)
        last = past[-1] if past and past[-1].decision == ROLLBACK else None
        if (
            last is not None
            and last.serving == str(current.version)
            and to in (None, last.serving)
            and not bento.is_packaged(current)
        ):
            print(f"finishing the rollback that {last.who} began at {last.when}", file=sys.stderr)
            return last, bento.package_champion(target, section)
        made = _rollback(
            name, current, to or decisions.previous(past, str(current.version)), reason
        )
        with tempfile.TemporaryDirectory() as scratch:
            versions.fetch(name, made.version, Path(scratch))  # verifies its digest
        _check_unchanged(name, made)
        if last is not None and (last.before, last.serving) == (made.before, made.serving):
            made = last  # recorded by a run that was killed before it moved the alias
        else:
            decisions.record(name, made, f"Rolled back to by {made.who}, {made.when}: {made.why}")
        versions.set_champion(name, made.version)
        return made, bento.package_champion(target, section)


def _rollback(name: str, current: ModelVersion, to: str | None, reason: str | None) -> Decision:
    version = str(current.version)
    if to is None:
        raise InputError(
            f"no champion before version {version} is on record: name one with --to VERSION "
            f"({versions.complete_versions(name)})"
        )
    if to == version:
        raise InputError(f"version {version} is the champion already: nothing was changed")
    model = versions.info_of(name, to)
    left = {"test": {}} | json.loads(current.tags.get(versions.INFO_TAG, "{}"))
    return Decision(
        decision=ROLLBACK,
        why=reason or "no reason given",
        challenger=_identity(model) | {"version": to},
        champion=_identity(left) | {"version": version},
        serving=to,
        figures={
            "before_test_dice": left["test"].get("mean_dice"),
            "after_test_dice": model["test"].get("mean_dice"),
        },
    )


def _identity(info: dict[str, Any]) -> dict[str, Any]:
    return {key: info.get(key) for key in ("version", "run_id", "digest", "architecture")}


def _check_unchanged(name: str, made: Decision) -> None:
    """Raises InputError if the alias has moved since the decision."""
    now = versions.champion(name)
    version = None if now is None else str(now.version)
    if version != made.before:
        raise InputError(
            f"the champion changed while this was decided, from version {made.before} to "
            f"{version}: run it again"
        )


def _decide(
    name: str,
    candidate: dict[str, Any],
    current: ModelVersion | None,
    params: PromoteParams,
    rows: pd.DataFrame,
    data: Path,
    past: list[Decision],
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
    figures, test_set = gate.figures(ours, theirs, params), fingerprint(rows)
    kind: Kind = "refused"
    scored = f"mean Dice {figures['challenger_mean_dice']:.4f} on {len(rows)} test slices"
    if same:
        kind, why = "same", f"the champion's own network at the same threshold ({scored})"
    elif rollback := decisions.rejected(past).get(challenger["digest"]):
        why = (
            f"refused: {rollback.who} rolled back from this network at {rollback.when} "
            f"({rollback.why}); `tumorseg rollback --to {challenger['version']}` makes it champion"
        )
    elif champion is None:
        kind, why = "first", f"first model, {scored}: it is champion, since there was none"
    else:
        gap = figures["difference"]
        compared = (
            f"{scored} against {figures['champion_mean_dice']:.4f} of the champion, version "
            f"{champion['version']} ({gap['mean']:+.4f}, 95% CI {gap['low']:+.4f} to "
            f"{gap['high']:+.4f}, {p_words(gap['p_value'])}, "
            f"{counted(gap['slices'], gap['groups'], test_set['patients_known'])})"
        )
        if against := gate.objections(figures):
            why = f"refused, {compared}: {'; '.join(against)}"
        else:
            kind = "promoted"
            why = f"promoted, {compared}: more than promote.min_gain and within all margins"
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
