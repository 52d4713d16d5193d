import csv
import json
import os
from pathlib import Path

import pytest
import yaml

from pipelines import validate
from tests.conftest import REPOSITORY
from tests.support.malformed import CASES, FOLDERS, IMAGES, RELATIVE, examine, prepare
from tests.support.spoiling import HEALTHY, Case, Outcome, spoilt
from tumorseg.core.errors import InputError
from tumorseg.core.params import ValidateParams, load_params
from tumorseg.data.expectations import check, report
from tumorseg.data.manifest import load_manifest
from tumorseg.importers import import_folder, plan

PARAMS = load_params(ValidateParams, REPOSITORY / "params.yaml").model_copy(update={"min_side": 32})
pytestmark = pytest.mark.timeout(60)


def of(cases: list[Case]):
    return [pytest.param(case, id=case.name) for case in cases]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """When everything under a folder was changed last, and its size; links and pipes included."""
    found = {str(path): os.lstat(path) for path in folder.rglob("*")}
    return {name: (status.st_mtime_ns, status.st_size) for name, status in found.items()}


@pytest.mark.parametrize("case", of(CASES))
def test_a_bad_input_has_the_outcome_that_is_stated(case: Case, tmp_path) -> None:
    data, scratch = tmp_path / "data", tmp_path / "scratch"
    outcome = prepare(data, case)
    before = contents(data)
    if outcome.error:
        with pytest.raises(InputError, match=outcome.error) as caught:
            examine(data, PARAMS, scratch)
        assert len(str(caught.value).splitlines()) == 1
    else:
        table = examine(data, PARAMS, scratch)
        problems = table.dropna(subset="problem").set_index("path")
        assert problems["problem"].to_dict() == {
            k: name for k, (name, _) in outcome.problems.items()
        }
        for path, (_, phrase) in outcome.problems.items():
            for why in problems.loc[[path], "why"]:
                assert phrase in why and len(why.splitlines()) == 1
        usable = table[table["problem"].isna()]
        if case not in FOLDERS:
            assert set(HEALTHY) <= set(usable["path"])
            assert len(table) > len(HEALTHY)  # the spoilt image is not lost
            found = {n for names in usable["oddities"] for n in names.split(",") if n} - RELATIVE
            assert found == set(outcome.oddities)
    assert contents(data) == before
    left = {path.name for path in scratch.iterdir()} if scratch.exists() else set()
    assert left <= {"thumbnails.npy"}


WHOLE = [case for case in CASES if case in FOLDERS or case.imports]


@pytest.mark.parametrize("case", of(WHOLE))
def test_a_bad_folder_is_imported_whole_or_not_at_all(case: Case, tmp_path) -> None:
    data, written = tmp_path / "source" / "data", tmp_path / "out" / "data"
    prepare(data, case)
    before = contents(data)
    if case.imports:
        for attempt in (lambda: plan(data, "coco"), lambda: import_folder(data, written, "coco")):
            with pytest.raises(InputError, match=case.imports) as caught:
                attempt()
            assert len(str(caught.value).splitlines()) == 1
        assert not written.parent.exists() or not list(written.parent.iterdir())
    else:
        import_folder(data, written)
        assert [path.name for path in written.parent.iterdir()] == ["data"]
    assert contents(data) == before


@pytest.mark.parametrize(
    ("name", "finding", "severity"),
    [
        ("palette", "unusual_mode", "warning"),
        ("test has no usable image", "empty_split", "critical"),
    ],
)
def test_a_report_names_the_finding(name: str, finding: str, severity: str, tmp_path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    prepare(tmp_path / "data", case)
    table = examine(tmp_path / "data", PARAMS, tmp_path / "scratch")
    lines = report(check(table, PARAMS, tmp_path / "docs"), table)
    assert any(line.startswith(f"{severity}: {finding}: ") for line in lines)


@pytest.fixture
def flow(tmp_path, monkeypatch):
    """Runs validate's steps, without Prefect, on data/ with quarantine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(validate, "step", lambda function: function)
    sections = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    sections["validate"] |= {"quarantine": True, "min_side": 32}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    return validate.validate.fn


def set_aside() -> dict[str, str]:
    with Path("reports/unusable.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["problem"] for row in csv.DictReader(file)}


@pytest.mark.timeout(120)
def test_quarantine_sets_all_offenders_aside(flow, tmp_path) -> None:
    data = tmp_path / "data"
    outcome: Outcome = spoilt(data, IMAGES)
    before = contents(data)
    flow()
    assert set_aside() == {path: name for path, (name, _) in outcome.problems.items()}
    kept = load_manifest(Path("artifacts/validate/manifest.parquet"))
    assert set(HEALTHY) <= set(kept["path"])
    assert not set(kept["path"]) & set(outcome.problems)
    assert kept["problem"].isna().all()
    assert contents(data) == before
    assert json.loads(Path("reports/audit.json").read_text())["unusable"]
    assert not [path for path in Path(".").rglob(f".{os.getpid()}.*")]


def test_quarantine_does_not_go_on_without_a_split(flow, tmp_path) -> None:
    (case,) = (case for case in FOLDERS if case.name == "no usable image anywhere")
    prepare(tmp_path / "data", case)
    with pytest.raises(InputError, match="empty_split"):
        flow()
    assert set(set_aside()) == set(HEALTHY)
    assert not Path("artifacts/validate/manifest.parquet").exists()
