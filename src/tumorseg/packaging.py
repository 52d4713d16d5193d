"""The registry's champion as a bento: what `tumorseg serve` and the image are made of."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tumorseg import bento, registry
from tumorseg.environment import STATE
from tumorseg.errors import InputError
from tumorseg.files import locked, write_json
from tumorseg.params import PackageParams, RegisterParams

PACKAGED = Path("artifacts/package/bento.json")
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


def packaged() -> dict[str, Any] | None:
    """What was packaged last, None where nothing was."""
    if not PACKAGED.exists():
        return None
    found: dict[str, Any] = json.loads(PACKAGED.read_text())
    return found


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
