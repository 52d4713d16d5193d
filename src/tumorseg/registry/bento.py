"""The champion, packaged as a bento: model and serving code in BentoML's local store."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from sqlalchemy.exc import SQLAlchemyError

import tumorseg
from tumorseg.core.environment import PACKAGED, SERVING, STATE
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.core.params import PackageParams, RegisterParams, load_params
from tumorseg.core.service_settings import Settings
from tumorseg.inference.predictor import ModelInfo, read_model
from tumorseg.registry import versions
from tumorseg.registry.runs import unreachable

LOCK = STATE / "package.lock"
LOCK_SECONDS = 300
# Not "tumorseg": `bentoml serve tumorseg:…` would first import the package of that name, and where
# this checkout is installed would then serve its code in place of the bento's.
NAME = "tumorseg-service"
# Serving imports these rooms only; training's code and dependencies stay out of the bento.
_ROOMS = ("core", "imaging", "inference", "monitoring", "serving")
# BentoML has no option for it. Podman heeds it only with `--format docker`.
_HEALTHCHECK = """{% extends bento_base_template %}
{% block SETUP_BENTO_ENTRYPOINT %}
HEALTHCHECK --start-period=60s CMD curl -fsS "http://127.0.0.1:${BENTOML_PORT:-3000}/readyz"
{{ super() }}
{% endblock %}
"""


def package_champion(target: RegisterParams, section: PackageParams) -> dict[str, Any]:
    """Resolves the alias once, builds a bento of that version and notes it in `PACKAGED`.

    Returns:
        What is noted: tag, version, run_id, digest.

    Raises:
        InputError: There is no champion, it is incomplete or damaged, or BentoML cannot build.
    """
    requirements = pinned(section.requirements, Path("requirements.lock"))
    name = target.model_name
    with versions.locked(LOCK, LOCK_SECONDS), tempfile.TemporaryDirectory() as scratch:
        champion = versions.champion(name)
        if champion is None:
            raise InputError(
                f"MLflow has no {name} with the alias {versions.CHAMPION!r}: run `dvc repro "
                "--force promote`"
            )
        info = versions.fetch(name, str(champion.version), Path(scratch))
        tag = build(Path(scratch), requirements=requirements, settings=section.service)
        packaged = {"tag": tag} | {key: info[key] for key in ("version", "run_id", "digest")}
        write_json(PACKAGED, packaged)
    return packaged


def packaged() -> dict[str, Any] | None:
    """What `PACKAGED` holds: tag, version, run_id, digest; None where it is missing or damaged."""
    try:
        found: Any = json.loads(PACKAGED.read_text())
    except (OSError, ValueError):
        return None
    complete = isinstance(found, dict) and {"tag", "version", "run_id", "digest"} <= found.keys()
    return found if complete else None


def is_packaged(version: ModelVersion) -> bool:
    """Whether the bento in `PACKAGED` is of a model version."""
    known = packaged() or {}
    wanted = (str(version.version), version.tags.get("digest"))
    return (known.get("version"), known.get("digest")) == wanted


def ensure_current_bento(instead: str = "") -> dict[str, Any]:
    """The bento to serve: the champion's, which is packaged first where another one was.

    Where MLflow cannot be reached, it is what was packaged last; standard error gets a line about
    either.

    Args:
        instead: What else the caller could take, for the message.

    Returns:
        As `packaged`.

    Raises:
        InputError: There is neither a champion nor a bento.
    """
    known, champion = packaged(), None
    target = load_params(RegisterParams)
    reason = unreachable()
    if reason is None:
        try:
            champion = versions.champion(target.model_name)
        except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
            reason = type(error).__name__
    if champion is None:
        if known is None:
            raise InputError(f"{PACKAGED}: is missing or damaged; type `make run` first{instead}")
        state = "has no champion" if reason is None else f"cannot be reached ({reason})"
        _note(f"MLflow {state}; packaged is {_name(known)}")
        return known
    if known is not None and is_packaged(champion):
        return known
    wanted = {"version": champion.version, "digest": champion.tags.get("digest")}
    was = "nothing" if known is None else _name(known)
    _note(f"the champion is {_name(wanted)}, but packaged is {was}: packaging the champion first")
    return package_champion(target, load_params(PackageParams))


def _name(model: dict[str, Any]) -> str:
    return f"version {model['version']} (sha256 {str(model['digest'])[:12]})"


def _note(sentence: str) -> None:
    print(f"tumorseg: {sentence}", file=sys.stderr, flush=True)


def pinned(names: list[str], lock: Path) -> list[str]:
    """The lines of the lock file for some packages.

    Raises:
        InputError: The lock file does not pin one of them.
    """
    lines = dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)
    pins = {name.lower().replace("_", "-"): pin for name, pin in lines.items()}
    missing = [name for name in names if name not in pins]
    if missing:
        raise InputError(
            f"{lock}: does not pin {', '.join(missing)}, named in package.requirements"
        )
    return [f"{name}=={pins[name]}" for name in names]


def build(model_folder: Path, *, requirements: list[str], settings: Settings) -> str:
    """Builds a bento from a model folder, unless the same one is in the store already.

    The bento's version is a digest of all that goes into it, so the same model, code, limits and
    requirements always give the same tag. Nothing is fetched from a network.

    Args:
        model_folder: Holds `model.onnx` and `model.json`.
        requirements: Pinned requirement lines for what serving imports.
        settings: The service's limits.

    Returns:
        The bento's tag, `tumorseg-service:<version>`.

    Raises:
        InputError: If the model folder is broken or BentoML cannot build.
    """
    info, _ = read_model(model_folder)
    with tempfile.TemporaryDirectory(prefix="tumorseg-bento-") as folder:
        stage = Path(folder)
        _copy(model_folder, stage)
        (stage / "Dockerfile.template").write_text(_HEALTHCHECK)
        (stage / "service.json").write_text(settings.model_dump_json(indent=2))
        # JSON is YAML.
        (stage / "bentofile.yaml").write_text(json.dumps(_bentofile(info, requirements)))
        tag = f"{NAME}:{_digest(stage)[:16]}"
        if _bentoml("get", tag, "--output=path", cwd=stage).returncode != 0:
            _run_build(tag, stage)
    return tag


def _copy(model_folder: Path, stage: Path) -> None:
    package, code = Path(tumorseg.__file__).parent, stage / "tumorseg"
    for room in _ROOMS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package / room, code / room, ignore=ignore)
    shutil.copy(package / "__init__.py", code)
    (stage / "model").mkdir()
    for name in ("model.onnx", "model.json"):
        shutil.copy(model_folder / name, stage / "model")


def _bentofile(info: ModelInfo, requirements: list[str]) -> dict[str, object]:
    return {
        "service": "tumorseg.serving.service:TumorSegmentation",
        "name": NAME,
        "description": f"Brain-tumour segmentation, model {info.version}. Research use only.",
        "labels": {
            "version": info.version,
            "digest": info.digest,
            "run_id": info.run_id,
            "architecture": info.architecture,
        },
        "include": ["tumorseg/", "model/", "service.json"],
        # Locking would ask a package index; the lines are pinned already.
        "python": {"packages": sorted(requirements), "lock_packages": False},
        # What `bentoml containerize` makes its image of; it runs as a user without rights. The host
        # is beyond the container's loopback interface, so that its port can be published at all;
        # the service then starts only with a key, or a setting that something else guards it.
        "docker": {
            "distro": "debian",
            "dockerfile_template": "Dockerfile.template",
            "env": {"BENTOML_HOST": "0.0.0.0", "BENTOML_DO_NOT_TRACK": "True"} | SERVING,
        },
    }


def _digest(stage: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in stage.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(stage)}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _run_build(tag: str, stage: Path) -> None:
    done = _bentoml("build", "--version", tag.partition(":")[2], str(stage), cwd=stage)
    if done.returncode != 0:
        reason = re.sub(r"\s+", " ", (done.stderr or done.stdout)[-500:]).strip()
        raise InputError(f"BentoML could not build {tag}: {reason}")


def _bentoml(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs BentoML in the staged folder, whose code it then imports in place of ours."""
    return subprocess.run(
        [sys.executable, "-m", "bentoml", *arguments],
        cwd=cwd,
        # Without `no_image` BentoML installs uv from a package index during the build.
        env=os.environ | {"BENTOML_ENABLE_FEATURES": "no_image", "BENTOML_DO_NOT_TRACK": "True"},
        capture_output=True,
        text=True,
        check=False,
    )
