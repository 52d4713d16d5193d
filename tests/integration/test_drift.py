"""Drift: verdicts on phantoms, what correlated slices are worth, and the flow around them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import httpx
import numpy as np
import pandas as pd
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

import pipelines.drift
from pipelines.register import looks
from tests.conftest import REPOSITORY
from tests.support.phantom_slices import SIDE, phantoms
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.core.params import DriftParams
from tumorseg.data.arrays import load_slices
from tumorseg.data.manifest import save_manifest
from tumorseg.monitoring import statistics as recorder
from tumorseg.monitoring.drift import (
    AREA,
    COLUMNS,
    DRIFT,
    FILE,
    NONE,
    SHOWN,
    TOO_FEW,
    compare,
    design_effect,
    load,
    read_window,
    reference,
    sentence,
    statistics_of,
)
from tumorseg.monitoring.ood import Assessment
from tumorseg.registry import runs
from tumorseg.reporting.wording import fill

PARAMS = DriftParams(
    window_hours=168, min_rows=100, min_groups=10, alpha=0.01, tolerance=0.1, retrain=True,
    cooldown_hours=24,
)  # fmt: skip
DIGEST = "d" * 64
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def known() -> dict:
    """A reference of 200 slices, through JSON as it comes to the flow."""
    greys, areas = phantoms(200, 1)
    return json.loads(json.dumps(reference(greys, range(200), SIDE, areas, range(200))))


@pytest.fixture(scope="module")
def others() -> tuple[np.ndarray, list[float]]:
    return phantoms(150, 2)


def window(others, change: Change = lambda grey: grey, together: int = 1) -> pd.DataFrame:
    """Rows as the service would have recorded them, `together` slices a request, ten an hour."""
    greys, areas = others
    taken = [statistics_of(change(grey), SIDE) for grey in greys]
    place = np.arange(len(greys))
    table = pd.DataFrame(taken, columns=COLUMNS[:-1])
    return table.assign(
        **{AREA: areas},
        request=place // together,
        hour=[f"2026-01-{1 + k // 200:02d}T{k // 10 % 20:02d}" for k in place],
        warned=0,
        confidence=0.9,
    )


def darker(grey: np.ndarray) -> np.ndarray:
    return (grey * 0.7).astype(np.uint8)


SHIFTS: dict[str, Change] = {
    "gain": darker,
    "blur": lambda grey: cv2.GaussianBlur(grey, (0, 0), 1),
    "mirrored": lambda grey: grey[::-1].copy(),
}


def test_like_slices_show_no_drift(known, others) -> None:
    found = compare(window(others), load(known), PARAMS)
    assert found["verdict"] == NONE and not any(c["outside"] for c in found["columns"])
    assert found["slices"] == found["requests"] == 150 and found["hours"] == 15
    assert found["since"] == "2026-01-01T00:00Z"
    assert sentence(found).startswith("No drift shown: all 31 statistics of the 150 slices")


@pytest.mark.parametrize("name", SHIFTS)
def test_shifted_slices_do(known, others, name: str) -> None:
    found = compare(window(others, SHIFTS[name]), load(known), PARAMS)
    assert found["verdict"] == DRIFT
    first = found["columns"][0]
    assert first["outside"] and first["moved"] == max(
        c["moved"] for c in found["columns"] if c["outside"]
    )
    assert first["name"] in sentence(found)
    assert len(first["bands"]) == 19  # for programs, in reports/drift.json


def test_larger_tumours_alone_are_drift_too(known, others) -> None:
    larger = window(others).assign(**{AREA: np.array(others[1]) * 3 + 0.01})
    found = compare(larger, load(known), PARAMS)
    assert [c["name"] for c in found["columns"] if c["outside"]] == [AREA]


def test_what_slices_are_worth() -> None:
    rng = np.random.default_rng(0)
    each = rng.normal(size=40)
    groups = np.repeat(np.arange(40), 10)
    assert design_effect(np.repeat(each, 10), groups) == pytest.approx(10)
    assert design_effect(rng.normal(size=400), groups) < 1.6
    assert 4 < design_effect(np.repeat(each, 10) + 0.7 * rng.normal(size=400), groups) < 9
    assert design_effect(each, np.arange(40)) == 1
    assert design_effect(each, np.zeros(40)) == 40
    assert design_effect(np.ones(400), groups) == 1


def test_many_slices_of_few_heads_are_no_drift(known, others) -> None:
    """Twelve heads, twelve slices each: what a request or an hour has in common tells."""
    few = tuple(np.repeat(each[:12], 12, axis=0) for each in others)
    volumes = window(few, together=12)
    alone = volumes.assign(request=range(144), hour=[f"h{k % 20}" for k in range(144)])
    one_by_one = volumes.assign(request=range(144), hour=volumes["request"].astype(str))
    assert compare(alone, load(known), PARAMS)["verdict"] == DRIFT
    for alike in (volumes, one_by_one):
        assert compare(alike, load(known), PARAMS)["verdict"] != DRIFT


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lambda table: table[:99], "99 slices"),
        (lambda table: table.assign(request=1), "1 requests"),
        (lambda table: table.assign(hour="2026-01-01T01"), "1 different hours"),
        (lambda table: table[:0], "0 slices"),
    ],
)
def test_too_few_slices_give_no_verdict(known, others, rows, words: str) -> None:
    found = compare(rows(window(others, darker)), load(known), PARAMS)
    assert found["verdict"] == TOO_FEW and words in sentence(found)
    about = {"model": {"version": "3", "digest": DIGEST}, "sentence": sentence(found)}
    words = {"alpha": 0.01, "window_hours": 168, "shown": SHOWN}
    assert sentence(found) in fill("drift.md", found | about | words)


def test_slices_that_are_worth_too_little_are_too_few(known, others) -> None:
    few = (np.tile(others[0][:11], (10, 1, 1)), others[1][:11] * 10)
    table = window(few).assign(request=list(range(11)) * 10)
    found = compare(table, load(known), PARAMS)
    assert found["verdict"] == TOO_FEW and "count as 11" in sentence(found)


def test_a_reference_of_other_statistics_is_refused(known) -> None:
    for damaged in ({}, known | {"method": "else"}, known | {"columns": {}}):
        with pytest.raises(InputError, match="dvc repro --force register"):
            load(damaged)


def test_register_describes_training_and_validation_slices(
    workplace, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest, arrays = workplace["manifest"], workplace["folder"] / "arrays"
    Path("artifacts/augment").mkdir(parents=True)
    Path("artifacts/augment/arrays").symlink_to(arrays)
    save_manifest(manifest, Path("artifacts/split/manifest.parquet"))
    valid = manifest[manifest["split"] == "valid"]
    rows = {"split": "valid", "path": valid["path"], "group": valid["split_group"]}
    rows |= {"tp": range(len(valid)), "fp": 5, "fn": 1, "tn": 94 - np.arange(len(valid))}
    runs = [("unet", 0), ("unet", 1), ("attention_unet", 0)]
    table = pd.concat([pd.DataFrame(rows | {"method": m, "seed": s}) for m, s in runs])
    table.loc[table["seed"] == 1, "fp"] = 50
    Path("reports").mkdir()
    table.to_csv("reports/per_slice.csv", index=False)
    columns = load(looks("unet", 0, SIDE))
    assert columns["brightness"]["slices"] == 12 + 5 and columns[AREA]["slices"] == 5
    assert columns[AREA]["quantiles"][0] == pytest.approx(0.05)
    assert columns[AREA]["quantiles"][-1] == pytest.approx(0.09)
    greys = [grey for split in ("train", "valid") for grey in load_slices(split, arrays).images]
    lowest = min(statistics_of(grey, SIDE)[COLUMNS.index("brightness")] for grey in greys)
    assert columns["brightness"]["quantiles"][0] == pytest.approx(lowest)


def record(path: Path, table: pd.DataFrame, digest: str = DIGEST) -> None:
    """Writes rows by the service's own recorder."""
    keeper = recorder.Recorder(path, 10_000)
    for row in table.to_dict("records"):
        assessment = Assessment([], np.array([row[name] for name in COLUMNS[:-1]]))
        keeper.record(digest, row["request"], row[AREA], 0.9, assessment)
    keeper.close()


def test_the_window_holds_one_model_s_slices_of_some_hours(others, tmp_path, monkeypatch) -> None:
    path, now = tmp_path / "statistics.db", datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    table = window(others)
    assert read_window(path, DIGEST, now, 24)[0].empty
    for ago, digest in ((30, DIGEST), (3, DIGEST), (3, "e" * 64), (0, DIGEST)):
        hour = recorder.hour_of(now - timedelta(hours=ago))
        with monkeypatch.context() as patch:
            patch.setattr(recorder, "hour_of", lambda _, hour=hour: hour)
            record(path, table[:10], digest)
    found, of_others = read_window(path, DIGEST, now, 24)
    assert of_others == 10
    assert len(found) == 20 and set(found["hour"]) == {"2026-03-01T12", "2026-03-01T09"}
    assert set(COLUMNS) <= set(found.columns)
    assert len(read_window(path, DIGEST, now, 48)[0]) == 30
    assert read_window(path, DIGEST, now, 2)[1] == 0
    record(path.with_name("other.db"), table[:5], DIGEST)  # of a second service on this disk
    both, _ = read_window(path.parent, DIGEST, datetime.now(UTC), 24 * 365 * 99)
    assert len(both) == 35 and both["hour"].nunique() == 4
    path.write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=r"statistics\.db: cannot be read"):
        read_window(path, DIGEST, now, 24)


@pytest.fixture
def place(own_store, monkeypatch, known, prefect_url):
    """A repository with a packaged model whose reference is in MLflow."""
    monkeypatch.delenv(recorder.VARIABLE, raising=False)
    Path(".state").mkdir()
    document = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    document["drift"] = PARAMS.model_dump()
    Path("params.yaml").write_text(yaml.safe_dump(document))
    logger = runs.start_run(document["register"]["experiment"], "unet", 0, {})
    write_json(Path(FILE), known)
    runs.complete_run(logger.run_id, {}, {}, [Path(FILE)])
    about = {"version": "3", "run_id": logger.run_id, "digest": DIGEST, "tag": "t"}
    write_json(Path("artifacts/package/bento.json"), about)
    with temporary_settings({PREFECT_API_URL: prefect_url}):
        yield


def spread(monkeypatch, table: pd.DataFrame) -> None:
    """Records the rows, fifteen to each of the last ten hours."""
    for ago, part in table.groupby(np.arange(len(table)) // 15):
        hour = recorder.hour_of(datetime.now(UTC) - timedelta(hours=int(ago)))
        with monkeypatch.context() as patch:
            patch.setattr(recorder, "hour_of", lambda _, hour=hour: hour)
            record(Path(".state/statistics.db"), part)


@pytest.mark.long
def test_the_flow_reports_and_starts_retraining_once(
    place, others, monkeypatch, prefect_url
) -> None:
    started: list[str] = []
    monkeypatch.setattr(pipelines.drift, "retrain", lambda because: started.append(because))
    record(Path(".state/statistics.db"), window(others)[:7], "e" * 64)  # before a promotion
    assert pipelines.drift.drift() == TOO_FEW
    words = json.loads(Path("reports/drift.json").read_text())["sentence"]
    assert "Other models answered 7 slices" in words

    spread(monkeypatch, window(others, darker))
    assert pipelines.drift.drift() == DRIFT
    found = json.loads(Path("reports/drift.json").read_text())
    assert started == ["d" + found["sentence"][1:-1]]  # to be part of the page's sentence
    assert found["verdict"] == DRIFT and found["slices"] == 150
    assert found["model"] == {"version": "3", "digest": DIGEST}
    page = Path("reports/drift.md").read_text()
    assert found["sentence"] in page and f"| {found['columns'][0]['name']} |" in page
    artifact = httpx.get(f"{prefect_url}/artifacts/drift/latest", timeout=10).json()
    assert artifact["data"] == page and artifact["description"] == found["sentence"]

    document = yaml.safe_load(Path("params.yaml").read_text())
    document["drift"] |= {"retrain": False}
    Path("params.yaml").write_text(yaml.safe_dump(document))
    pipelines.drift.STARTED.unlink()
    assert pipelines.drift.drift() == DRIFT and len(started) == 1


def test_retraining_starts_once_within_the_cooldown(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    now, day = datetime(2026, 3, 1, tzinfo=UTC), timedelta(days=1)
    started: list[str] = []
    monkeypatch.setattr(pipelines.drift, "retrain", lambda because: started.append(because))
    for hours, count in ((0, 1), (23, 1), (25, 2)):
        pipelines.drift.retrain_once(now + timedelta(hours=hours), day, "drift")
        assert len(started) == count
    monkeypatch.setattr(pipelines.drift, "retrain", lambda because: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipelines.drift.retrain_once(now + 3 * day, day, "drift")
    pipelines.drift.retrain_once(now + 3 * day, day, "drift")  # a failure is not tried again


@pytest.mark.long
def test_a_missing_model_or_reference_is_named(place) -> None:
    Path("artifacts/package/bento.json").unlink()
    with pytest.raises(InputError, match="make run"):
        pipelines.drift.drift()
    about = {"tag": "t", "version": "3", "run_id": "0" * 32, "digest": DIGEST}
    write_json(Path("artifacts/package/bento.json"), about)
    with pytest.raises(InputError, match="force register"):
        pipelines.drift.drift()
