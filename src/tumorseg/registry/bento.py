"""The champion, packaged as a bento: model and serving code in BentoML's local store."""

import hashlib
import json
import os
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
from tumorseg.core.environment import PACKAGED, SERVING, SILENT, STATE
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.core.params import PackageParams, RegisterParams, load_params
from tumorseg.core.service_settings import Settings
from tumorseg.inference.predictor import ModelInfo, read_model
from tumorseg.registry import versions
from tumorseg.registry.runs import unreachable

LOCK = STATE / "package.lock"
LOCK_SECONDS = 300
# Not "tumorseg": `bentoml serve tumorseg:…` would import the package of that name, if installed, in
# place of the bento's code.
NAME = "tumorseg-service"
# Serving imports only these packages; training's code and dependencies stay out of the bento.
_ROOMS = ("core", "imaging", "inference", "monitoring", "serving")
# BentoML has no option for it. Podman needs `--format docker` to keep it.
_HEALTHCHECK = """{% extends bento_base_template %}
{% block SETUP_BENTO_ENTRYPOINT %}
HEALTHCHECK --start-period=60s CMD curl -fsS "http://127.0.0.1:${BENTOML_PORT:-3000}/readyz"
{{ super() }}
{% endblock %}
"""


def package_champion(target: RegisterParams, section: PackageParams) -> dict[str, Any]:
    """Resolves the alias once, builds a bento of that version and writes `PACKAGED`.

    Returns:
        The contents of `PACKAGED`: tag, version, run_id, digest.

    Raises:
        InputError: There is no champion, it is incomplete or damaged, or BentoML cannot build.
    """
    requirements = pinned(section.requirements, Path("requirements.lock"))
    with versions.locked(LOCK, LOCK_SECONDS), tempfile.TemporaryDirectory() as scratch:
        champion = versions.champion(target.model_name)
        if champion is None:
            raise InputError(
                f"MLflow has no {target.model_name} with the alias {versions.CHAMPION!r}: run "
                "`dvc repro --force promote`"
            )
        info = versions.fetch(target.model_name, str(champion.version), Path(scratch))
        tag = build(Path(scratch), requirements=requirements, settings=section.service)
        made = {"tag": tag} | {key: info[key] for key in ("version", "run_id", "digest")}
        write_json(PACKAGED, made)
    return made


def packaged() -> dict[str, Any] | None:
    """The contents of `PACKAGED`: tag, version, run_id, digest; None if missing or damaged."""
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
    """The champion's bento, which is built where another version or none is packaged.

    Where MLflow has no champion or cannot be reached, it is the bento that was packaged last.
    Standard error gets a line in both cases.

    Args:
        instead: What else the caller accepts, for the message.

    Returns:
        As `packaged`.

    Raises:
        InputError: There is neither a champion nor a bento.
    """
    target, known, champion = load_params(RegisterParams), packaged(), None
    state = "has no champion"
    if reason := unreachable():
        state = f"cannot be reached ({reason})"
    else:
        try:
            champion = versions.champion(target.model_name)
        except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
            state = f"cannot be reached ({type(error).__name__})"
    if champion is not None and (known is None or not is_packaged(champion)):
        was = "nothing" if known is None else f"version {known['version']}"
        note = f"the champion is version {champion.version}, but packaged is {was}: packaging it"
        print(f"tumorseg: {note} first", file=sys.stderr, flush=True)
        return package_champion(target, load_params(PackageParams))
    if known is None:
        raise InputError(f"{PACKAGED}: is missing or damaged; type `make run` first{instead}")
    if champion is None:
        note = f"MLflow {state}; packaged is version {known['version']}"
        print(f"tumorseg: {note} (sha256 {known['digest'][:12]})", file=sys.stderr, flush=True)
    return known


def pinned(names: list[str], lock: Path) -> list[str]:
    """The lines of the lock file for some packages.

    Raises:
        InputError: The lock file does not pin one of them.
    """
    lines = lock.read_text().splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-"): line for line in lines}
    if missing := set(names) - pins.keys():
        listed = ", ".join(sorted(missing))
        raise InputError(f"{lock}: does not pin {listed}, named in package.requirements")
    return [pins[name] for name in names]


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
    package = Path(tumorseg.__file__).parent
    with tempfile.TemporaryDirectory(prefix="tumorseg-bento-") as folder:
        stage = Path(folder)
        for room in _ROOMS:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(package / room, stage / "tumorseg" / room, ignore=ignored)
        shutil.copy(package / "__init__.py", stage / "tumorseg")
        (stage / "model").mkdir()
        for name in ("model.onnx", "model.json"):
            shutil.copy(model_folder / name, stage / "model")
        (stage / "Dockerfile.template").write_text(_HEALTHCHECK)
        (stage / "service.json").write_text(settings.model_dump_json(indent=2))
        # JSON is YAML.
        (stage / "bentofile.yaml").write_text(json.dumps(_bentofile(info, requirements)))
        total = hashlib.sha256()
        for path in sorted(p for p in stage.rglob("*") if p.is_file()):
            total.update(f"{path.relative_to(stage)}\0{versions.digest_of(path)}".encode())
        tag = f"{NAME}:{total.hexdigest()[:16]}"
        if _bentoml("get", tag, "--output=path", cwd=stage).returncode != 0:
            done = _bentoml("build", "--version", tag.partition(":")[2], str(stage), cwd=stage)
            if done.returncode != 0:
                reason = " ".join((done.stderr or done.stdout)[-500:].split())
                raise InputError(f"BentoML could not build {tag}: {reason}")
    return tag


def _bentofile(info: ModelInfo, requirements: list[str]) -> dict[str, object]:
    return {
        "service": "tumorseg.serving.service:TumorSegmentation",
        "name": NAME,
        "description": f"Brain-tumour segmentation, model {info.version}. Research use only.",
        "labels": info.model_dump(include={"version", "digest", "run_id", "architecture"}),
        "include": ["tumorseg/", "model/", "service.json"],
        # Locking would ask a package index; the lines are pinned already.
        "python": {"packages": sorted(requirements), "lock_packages": False},
        # For `bentoml containerize`. Beyond the container's loopback interface the service starts
        # only with a key, or with a setting that something else guards it.
        "docker": {
            "distro": "debian",
            # With a template of its own, BentoML also builds without installing uv from an index.
            "dockerfile_template": "Dockerfile.template",
            "env": {"BENTOML_HOST": "0.0.0.0", "BENTOML_DO_NOT_TRACK": "True"} | SERVING,
        },
    }


def _bentoml(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs BentoML in the staged folder, whose code it then imports in place of ours."""
    return subprocess.run(
        [sys.executable, "-m", "bentoml", *arguments],
        cwd=cwd,
        env=os.environ | SILENT,
        capture_output=True,
        text=True,
        check=False,
    )
