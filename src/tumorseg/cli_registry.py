"""The `tumorseg` commands about the champion: package it, roll back, and its history."""

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from tumorseg.core.errors import InputError

if TYPE_CHECKING:  # MLflow takes seconds to import
    from tumorseg.core.params import RegisterParams
    from tumorseg.registry.decisions import Decision


def rollback(
    to: Annotated[
        str | None,
        typer.Option(help="The version to put back; the champion before this one if left out."),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the history.")] = None,
) -> None:
    """Put an earlier champion back and package it."""
    from tumorseg.core.params import PackageParams, load_params
    from tumorseg.registry.promotion import roll_back

    start = time.monotonic()
    made, packaged = roll_back(_registry(), load_params(PackageParams), to, reason)
    left = made.champion or {}
    print(
        f"champion: version {made.before} (sha256 {left.get('digest')}) → "
        f"version {made.version} (sha256 {made.challenger['digest']})"
    )
    print(f"packaged: {packaged['tag']}, sha256 {packaged['digest']}")
    print(f"took {time.monotonic() - start:.1f} s; a service that runs serves it once restarted")


def package() -> None:
    """Package the champion, where the bento holds another model, and print the bento's tag."""
    from tumorseg.registry.bento import ensure_current_bento

    print(ensure_current_bento()["tag"])


def history() -> None:
    """Show who became champion, when, by whom and why."""
    from tumorseg.registry import decisions, versions

    name = _registry().model_name
    made = decisions.history(name)
    if not made:
        print("nothing has been decided yet: `make run` registers a first model")
        return
    champion = versions.champion(name)
    print("| when (UTC) | who | what | champion | why | figures |")
    print("|---|---|---|---|---|---|")
    for one in made:
        cells = [f"{datetime.fromisoformat(one.when):%Y-%m-%d %H:%M:%S}", one.who]
        cells += [f"{one.decision} {one.version}", _champion(one), one.why, _figures(one)]
        plain = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
        print(f"| {' | '.join(plain)} |")
    now = None if champion is None else str(champion.version)
    if now != made[-1].serving:
        print(f"the champion is {now or 'none'}: the last decision was not carried out, or undone")


def _registry() -> "RegisterParams":
    """The register section, once MLflow is known to answer."""
    from tumorseg.core.params import RegisterParams, load_params
    from tumorseg.registry.runs import unreachable

    target = load_params(RegisterParams)
    if reason := unreachable():
        raise InputError(
            f"MLflow cannot be reached ({reason}): type `make run` first, or set "
            "MLFLOW_TRACKING_URI to where it is"
        )
    return target


def _champion(made: "Decision") -> str:
    before = made.before or "none"
    return f"{before} → {made.serving}" if made.moves else f"{before} stays"


def _figures(made: "Decision") -> str:
    found = made.figures
    if gap := found.get("difference"):
        return (
            f"Dice {found['challenger_mean_dice']:.4f}, champion "
            f"{found['champion_mean_dice']:.4f}, gain {gap['mean']:+.4f} "
            f"({gap['low']:+.4f} to {gap['high']:+.4f})"
        )
    if "challenger_mean_dice" in found:
        return f"Dice {found['challenger_mean_dice']:.4f}"
    dice = [found.get(name) for name in ("before_test_dice", "after_test_dice")]
    shown = ["–" if value is None else f"{value:.4f}" for value in dice]
    return f"Dice when registered {shown[0]} → {shown[1]}"
