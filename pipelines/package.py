"""package: champion → bento, pinned to its version and digest."""

from pipelines._flow import command, stage, step
from tumorseg.core.params import PackageParams, RegisterParams, load_params
from tumorseg.registry.bento import package_champion


@stage(name="package")
def package() -> None:
    """Resolves the alias `champion` once, fetches that version and builds a bento of it."""
    made = step(package_champion, retries=2)(
        load_params(RegisterParams), load_params(PackageParams)
    )
    print(f"{made['tag']}: version {made['version']}, sha256 {made['digest']}")


if __name__ == "__main__":
    command(package)
