"""The registry's champion as a bento: what `tumorseg serve` and the image are made of."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from sqlalchemy.exc import SQLAlchemyError

from tumorseg.core.environment import PACKAGED, STATE
from tumorseg.core.errors import InputError
from tumorseg.core.files import locked, write_json
from tumorseg.core.params import PackageParams, RegisterParams, load_params
from tumorseg.registry import bento
from tumorseg.registry import versions as registry
from tumorseg.registry.runs import silence

LOCK = STATE / "package.lock"
PATIENCE_SECONDS = 300


def package_champion(target: RegisterParams, section: PackageParams) -> dict[str, Any]:
    """Resolves the alias once, builds a bento of that version and notes it in `PACKAGED`.

    Returns:
        What is noted: tag, version, run_id, digest.

    Raises:
        InputError: There is no champion, it is incomplete or damaged, or BentoML cannot build.
    """
    requirements = pinned(section.requirements, Path("requirements.lock"))
    with locked(LOCK, "package", PATIENCE_SECONDS), tempfile.TemporaryDirectory() as scratch:
        champion = registry.champion(target.model_name, target.experiment)
        if champion is None:
            raise InputError(
                f"MLflow has no {target.model_name} with the alias {registry.CHAMPION!r}: run "
                "`dvc repro --force promote`"
            )
        info = registry.fetch(
            target.model_name, str(champion.version), target.experiment, Path(scratch)
        )
        tag = bento.build(Path(scratch), requirements=requirements, settings=section.service)
        packaged = {"tag": tag} | {key: info[key] for key in ("version", "run_id", "digest")}
        write_json(PACKAGED, packaged)
    return packaged


def reconcile(instead: str = "") -> dict[str, Any]:
    """What is to be served: the registry's champion, packaged first where another one was.

    Where MLflow cannot be asked, that is what was packaged last. Says on standard error what of
    this it did.

    Args:
        instead: What else its caller could take, for the message.

    Returns:
        What `PACKAGED` holds.

    Raises:
        InputError: There is neither a champion nor a bento.
    """
    known = _known()
    target = load_params(RegisterParams)
    try:
        champion = (
            None
            if (silent := silence())
            else registry.champion(target.model_name, target.experiment)
        )
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        silent = f"{type(error).__name__}"
    if silent or champion is None:
        reason = f"MLflow cannot be asked who is champion ({silent})"
        if known is None:
            raise InputError(f"{PACKAGED}: is missing or damaged; type `make run` first{instead}")
        _say(f"{reason if silent else 'MLflow has no champion'}; packaged is {_named(known)}")
        return known
    wanted = {"version": str(champion.version), "digest": champion.tags.get("digest")}
    if known is not None and all(known[key] == value for key, value in wanted.items()):
        return known
    was = "nothing" if known is None else _named(known)
    _say(f"the champion is {_named(wanted)}, but packaged is {was}: packaging the champion first")
    return package_champion(target, load_params(PackageParams))


def _known() -> dict[str, Any] | None:
    """What `PACKAGED` holds; None where it is missing or damaged."""
    try:
        told: Any = json.loads(PACKAGED.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(told, dict) and {"tag", "version", "run_id", "digest"} <= told.keys()
    return told if whole else None


def _named(model: dict[str, Any]) -> str:
    return f"version {model['version']} (sha256 {str(model['digest'])[:12]})"


def _say(sentence: str) -> None:
    print(f"tumorseg: {sentence}", file=sys.stderr, flush=True)


def pinned(names: list[str], lock: Path) -> list[str]:
    """The lines of the lock file for some packages.

    Raises:
        InputError: The lock file does not pin one of them.
    """
    lines = dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)
    versions = {name.lower().replace("_", "-"): version for name, version in lines.items()}
    missing = [name for name in names if name not in versions]
    if missing:
        raise InputError(
            f"{lock}: does not pin {', '.join(missing)}, named in package.requirements"
        )
    return [f"{name}=={versions[name]}" for name in names]
