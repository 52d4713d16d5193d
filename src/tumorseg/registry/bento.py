"""A packaged model and the code that serves it as a bento in BentoML's local store."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tumorseg
from tumorseg.core.environment import SERVING
from tumorseg.core.errors import InputError
from tumorseg.core.service_settings import Settings
from tumorseg.inference.predictor import ModelInfo, read_model

# Not "tumorseg": `bentoml serve tumorseg:…` would first import the package of that name, and where
# this checkout is installed would then serve its code in place of the bento's.
NAME = "tumorseg-service"
# All that serving imports; training's code and its dependencies stay out of the bento.
_SOURCES = (
    "__init__.py",
    "core/__init__.py",
    "core/cores.py",
    "core/errors.py",
    "core/service_settings.py",
    "imaging/*.py",
    "inference/__init__.py",
    "inference/answers.py",
    "inference/predictor.py",
    "inference/segment.py",
    "monitoring/__init__.py",
    "monitoring/ood.py",
    "monitoring/statistics.py",
    "serving/**/*.py",
    "serving/web/*.css",
    "serving/web/*.html",
    "serving/web/*.js",
)
# BentoML has no option for it. Podman heeds it only with `--format docker`.
_HEALTHCHECK = """{% extends bento_base_template %}
{% block SETUP_BENTO_ENTRYPOINT %}
HEALTHCHECK --start-period=60s CMD curl -fsS "http://127.0.0.1:${BENTOML_PORT:-3000}/readyz"
{{ super() }}
{% endblock %}
"""


def build(model_folder: Path, *, requirements: list[str], settings: Settings) -> str:
    """Builds a bento from a packaged model, unless the same one is in the store already.

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
    package = Path(tumorseg.__file__).parent
    files = {f"tumorseg/{p.relative_to(package)}": p for g in _SOURCES for p in package.glob(g)}
    for name in ("model.onnx", "model.json"):
        files[f"model/{name}"] = model_folder / name
    for name, source in files.items():
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


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
        # What `bentoml containerize` makes its image of; it runs as a user without rights. Beyond
        # the container's own loopback interface, so that its port can be published at all; the
        # service then starts only with a key, or where it is told that something else guards it.
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
