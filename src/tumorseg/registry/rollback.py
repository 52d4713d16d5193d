"""A person puts an earlier champion back: its file verified, the alias moved, the bento rebuilt."""

import json
import sys
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from tumorseg.core.errors import InputError
from tumorseg.core.files import locked
from tumorseg.core.params import PackageParams, RegisterParams
from tumorseg.registry import history
from tumorseg.registry import versions as registry
from tumorseg.registry.packaging import package_champion
from tumorseg.registry.promotion import LOCK, move, settle

PATIENCE_SECONDS = 60
LONGEST_REASON = 1000  # characters


def roll_back(
    target: RegisterParams, section: PackageParams, to: str | None, reason: str | None
) -> tuple[history.Event, dict[str, Any]]:
    """Puts a version in the champion's place, or ends a rollback that was interrupted.

    Args:
        target: The register section.
        section: The package section.
        to: The version; the champion before the present one if None.
        reason: Why, in a person's words.

    Returns:
        What the story keeps of it, and what is packaged now.

    Raises:
        InputError: There is no such version or no earlier champion, its file is damaged, or it is
            the champion already.
    """
    if reason is not None and len(reason) > LONGEST_REASON:
        raise InputError(f"--reason: is longer than {LONGEST_REASON} characters; shorten it")
    with locked(LOCK, "rollback", PATIENCE_SECONDS):
        current = registry.champion(target.model_name, target.experiment)
        if current is None:
            raise InputError("MLflow has no champion, so there is none to go back from: `make run`")
        event = _interrupted(target, str(current.version), to)
        if event is None:
            settle(target)
            event = _intend(target, current, to, reason)
        if event.after != str(current.version):
            move(target, event)
        packaged = package_champion(target, section)
        # Last, so that the same typed again after an interruption ends this one, and no second.
        history.close(target, event)
    return event, packaged


def _interrupted(target: RegisterParams, current: str, to: str | None) -> history.Event | None:
    for event in history.events(target)[::-1]:
        if event.what != history.ROLLBACK or event.state != "intended":
            continue
        if current in (event.before, event.after) and to in (None, event.after):
            print(
                f"going on with the rollback that {event.who} began on "
                f"{event.when:%Y-%m-%d %H:%M:%S} UTC",
                file=sys.stderr,
            )
            return event
    return None


def _intend(
    target: RegisterParams, current: ModelVersion, to: str | None, reason: str | None
) -> history.Event:
    version = str(current.version)
    after = to or history.previous(history.events(target), version)
    if after is None:
        raise InputError(
            f"the story knows no champion before version {version}: name one with --to VERSION "
            f"({registry.named(target.model_name, target.experiment)})"
        )
    if after == version:
        raise InputError(f"version {version} is the champion already: nothing was changed")
    model = registry.info_of(target.model_name, after, target.experiment)
    left = json.loads(current.tags.get(registry.INFO_TAG, "{}"))
    champion = {"version": version, "digest": left.get("digest", "")}
    scored = {"before_test_dice": left.get("test", {}), "after_test_dice": model["test"]}
    return history.intend(
        target,
        history.ROLLBACK,
        model,
        champion,
        after,
        reason or "no reason given",
        {name: test["mean_dice"] for name, test in scored.items() if "mean_dice" in test},
    )
