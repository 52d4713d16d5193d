"""Small repositories with a registry of toy networks, as fixtures."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from tests.support import toy_registry
from tests.support.toy_registry import GOOD, MIDDLING, POOR
from tumorseg.core.environment import PACKAGED
from tumorseg.core.files import write_json
from tumorseg.data.manifest import load_manifest
from tumorseg.registry import bento, promotion, versions
from tumorseg.registry.decisions import Decision, history


@pytest.fixture(scope="module")
def stocked(tmp_path_factory, empty_store) -> SimpleNamespace:
    """An MLflow with a version of each toy network, of which 1 and 2 were promoted."""
    root = tmp_path_factory.mktemp("stocked")
    shutil.copy(empty_store, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch, opened(root, patch) as place:
        candidates = [place.register(model) for model in (POOR, MIDDLING, GOOD)]
        assert [place.promote(each).serving for each in candidates[:2]] == ["1", "2"]
    return SimpleNamespace(path=root / "mlflow.db", candidates=candidates)


@contextmanager
def opened(root: Path, patch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A repository in `root`, with the MLflow that lies there, and what one does in it."""
    patch.chdir(root)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    patch.setenv("TUMORSEG_USER", "jane")
    toy_registry.write_repository(root)
    target, params, package = toy_registry.params(root)
    rows = load_manifest()

    def register(model, **changes) -> dict:
        return toy_registry.register(root, target, model, **changes)

    def promote(candidate) -> Decision:
        return promotion.promote(candidate, target, params, rows, Path("data"))

    def alias() -> str | None:
        found = versions.champion(target.model_name)
        return None if found is None else str(found.version)

    def whole() -> bool:
        """Whether the alias is on a complete version whose file is the one registered."""
        version = alias()
        assert version is not None
        return bool(versions.fetch(target.model_name, version, root / "checked"))

    def back(to=None, reason=None) -> Decision:
        return promotion.roll_back(target, package, to, reason)[0]

    yield SimpleNamespace(
        root=root, name=target.model_name, register=register, promote=promote, alias=alias,
        whole=whole, back=back, history=lambda: history(target.model_name),
    )  # fmt: skip
    mlflow.set_tracking_uri(None)


@pytest.fixture
def place(tmp_path, monkeypatch, empty_store) -> Iterator[SimpleNamespace]:
    """A repository with an empty MLflow of its own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with opened(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def shop(tmp_path, monkeypatch, stocked) -> Iterator[SimpleNamespace]:
    """A repository whose MLflow has versions 1 (poor), 2 (middling, the champion), 3 (good)."""
    shutil.copy(stocked.path, tmp_path / "mlflow.db")
    with opened(tmp_path, monkeypatch) as made:
        made.candidates = stocked.candidates
        yield made


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """Versions that were packaged; making real bentos is what the CLI's tests do."""
    built: list[str] = []

    def package(target, section):
        champion = versions.champion(target.model_name)
        about = {"version": str(champion.version), "digest": champion.tags["digest"]}
        built.append(about["version"])
        write_json(PACKAGED, {"tag": "t", "run_id": "r"} | about)
        return about

    monkeypatch.setattr(bento, "package_champion", package)
    return built
