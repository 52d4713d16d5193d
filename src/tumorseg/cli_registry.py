"""The `tumorseg` commands about the champion: package it, put an earlier one back, its story."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from tumorseg.core.errors import InputError

if TYPE_CHECKING:  # MLflow takes seconds to import
    from tumorseg.core.params import RegisterParams
    from tumorseg.registry.history import Event


def rollback(
    to: Annotated[
        str | None,
        typer.Option(help="The version to put back; the champion before this one if left out."),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the story.")] = None,
) -> None:
    """Put an earlier champion back and package it."""
    from tumorseg.core.params import PackageParams, load_params
    from tumorseg.registry.rollback import roll_back

    start = time.monotonic()
    event, packaged = roll_back(_registry(), load_params(PackageParams), to, reason)
    print(
        f"champion: version {event.before} (sha256 {event.before_digest}) → "
        f"version {event.after} (sha256 {event.digest})"
    )
    print(f"packaged: {packaged['tag']}, sha256 {packaged['digest']}")
    print(f"took {time.monotonic() - start:.1f} s; a service that runs serves it once restarted")


def package() -> None:
    """Package the champion, where the bento holds another model, and print the bento's tag."""
    from tumorseg.registry.packaging import reconcile

    print(reconcile()["tag"])


def history() -> None:
    """Tell who became champion, when, by whom and why."""
    from tumorseg.registry.history import events

    story = events(_registry())
    if not story:
        print("nothing has been decided yet: `make run` registers a first model")
        return
    print("| when (UTC) | who | what | champion | why | figures |")
    print("|---|---|---|---|---|---|")
    for event in story:
        cells = [f"{event.when:%Y-%m-%d %H:%M:%S}", event.who, _what(event), _champion(event)]
        cells += [event.why, _figures(event)]
        plain = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
        print(f"| {' | '.join(plain)} |")


def _registry() -> "RegisterParams":
    """Where the registry is, once it is clear that it answers."""
    from tumorseg.core.params import RegisterParams, load_params
    from tumorseg.registry.runs import silence

    target = load_params(RegisterParams)
    if reason := silence():
        raise InputError(
            f"MLflow cannot be asked who is champion ({reason}): type `make run` first, or set "
            "MLFLOW_TRACKING_URI to where it is"
        )
    return target


def _what(event: "Event") -> str:
    ended = {"done": "", "intended": " (not finished)", "dropped": " (never carried out)"}
    return f"{event.what} {event.version}{ended[event.state]}"


def _champion(event: "Event") -> str:
    if not event.moves:
        return f"{event.before or 'none'} stays"
    return f"{event.before or 'none'} → {event.after}"


def _figures(event: "Event") -> str:
    found = event.figures
    if "gain" in found:
        return (
            f"Dice {found['challenger_mean_dice']:.4f}, champion "
            f"{found['champion_mean_dice']:.4f}, gain {found['gain']:+.4f} "
            f"({found['gain_low']:+.4f} to {found['gain_high']:+.4f})"
        )
    if "challenger_mean_dice" in found:
        return f"Dice {found['challenger_mean_dice']:.4f}"
    told = [found.get(name) for name in ("before_test_dice", "after_test_dice")]
    shown = ["–" if value is None else f"{value:.4f}" for value in told]
    return f"Dice when registered {shown[0]} → {shown[1]}"
