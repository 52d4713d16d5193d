"""package: champion → bento, pinned to its version and digest."""

import tempfile
from pathlib import Path

from pipelines._flow import main, stage, step
from tumorseg import bento, registry
from tumorseg.errors import InputError
from tumorseg.files import write_json
from tumorseg.params import PackageParams, RegisterParams, load_params

BENTO = Path("artifacts/package/bento.json")


@stage(name="package")
def package() -> None:
    """Resolves the alias `champion` once, fetches that version and builds a bento of it."""
    params = load_params(RegisterParams)
    section = load_params(PackageParams)
    requirements = pinned(section.requirements, Path("requirements.lock"))
    champion = registry.champion(params.model_name, params.experiment)
    if champion is None:
        raise InputError(
            f"MLflow has no {params.model_name} with the alias {registry.CHAMPION!r}: run "
            "`dvc repro --force register`"
        )
    with tempfile.TemporaryDirectory() as scratch:
        info = step(registry.fetch, retries=2)(
            params.model_name, champion.version, params.experiment, Path(scratch)
        )
        tag = step(bento.build)(Path(scratch), requirements=requirements, settings=section.service)
    write_json(BENTO, {"tag": tag} | {k: info[k] for k in ("version", "run_id", "digest")})
    print(f"{tag}: {info['architecture']}, version {info['version']}, sha256 {info['digest']}")


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


if __name__ == "__main__":
    main(package)
