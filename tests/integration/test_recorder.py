"""The record of served slices: bounded, without anything that names a scan, never in the way."""

import logging
import os
import re
import resource
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.support.made_volumes import COUNT, dicom_bytes, series, series_zip
from tests.support.phantom_slices import SIDE, phantoms
from tests.support.serving_model import encode, write_model
from tests.support.serving_process import SOURCE, in_process, ready, start, stop
from tumorseg.inference.predictor import load_info
from tumorseg.monitoring import ood as familiarity
from tumorseg.monitoring import statistics as recorder
from tumorseg.monitoring.ood import NAMES, Assessment, describe
from tumorseg.monitoring.statistics import TABLE, Recorder


@pytest.fixture(scope="module")
def greys() -> np.ndarray:
    return phantoms(40, 3)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory, greys) -> Path:
    """A model that knows what its training slices look like."""
    return write_model(tmp_path_factory.mktemp("model"), inputs=describe(greys[:30], greys[30:]))


def rows_of(path: Path) -> list[dict]:
    with closing(sqlite3.connect(path)) as file:
        file.row_factory = sqlite3.Row
        return [dict(row) for row in file.execute(f"SELECT * FROM {TABLE}")]


def filled(keeper: Recorder, count: int, rng: np.random.Generator) -> None:
    for _ in range(count):
        keeper.record("d" * 64, 1, 0.0, None, Assessment([], rng.random(len(NAMES))))


def bytes_of(path: Path) -> int:
    return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))


def test_rows_and_bytes_are_bounded_and_the_oldest_hours_go_first(tmp_path, monkeypatch) -> None:
    path, rng, sizes = tmp_path / "some" / "statistics.db", np.random.default_rng(0), []
    for hour in range(12):
        monkeypatch.setattr(recorder, "hour_of", lambda _, hour=hour: f"2026-01-01T{hour:02d}")
        keeper = Recorder(path, 1000)
        filled(keeper, 400, rng)
        keeper.close()
        sizes.append(bytes_of(path))
    rows = rows_of(path)
    assert len(rows) == 1000
    hours = [row["hour"][-2:] for row in rows]
    assert {name: hours.count(name) for name in set(hours)} == {"11": 400, "10": 400, "09": 200}
    assert max(sizes) < 1000 * 800  # bytes a row, the half-empty pages included
    assert max(sizes[6:]) <= 1.2 * max(sizes[3:6])
    assert path.stat().st_mode & 0o077 == 0


def test_without_statistics_there_is_no_row_and_no_file(tmp_path, monkeypatch) -> None:
    keeper = Recorder(tmp_path / "a.db", 10)
    keeper.record("d", 1, 0.0, None, Assessment(["The picture is uniform."]))
    keeper.close()
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv(recorder.VARIABLE, raising=False)
    assert Recorder.from_environment(10) is None
    monkeypatch.setenv(recorder.VARIABLE, str(tmp_path / "a.db"))
    assert Recorder.from_environment(0) is None


def count(counter) -> float:
    (metric,) = counter.collect()
    return metric.samples[0].value


def until(counter, value: float) -> None:
    end = time.monotonic() + 20
    while count(counter) < value:
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("CREATE TABLE IF NOT EXISTS other (x)")
        file.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def no_space(path: Path) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    path.write_bytes(b"no database" * 500)
    yield
    path.unlink()


@pytest.mark.parametrize("trouble", [locked, no_space, damaged])
def test_a_store_that_fails_is_counted_said_once_and_taken_up_again(
    tmp_path, caplog, trouble
) -> None:
    path, rng = tmp_path / "statistics.db", np.random.default_rng(0)
    keeper = Recorder(path, 100, seconds=0.01, timeout=0.1)
    lost, kept = count(recorder.LOST), count(recorder.KEPT)

    with caplog.at_level(logging.WARNING, logger="bentoml"), trouble(path):
        for number in (1, 2):
            filled(keeper, 1, rng)
            until(recorder.LOST, lost + number)
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(path) in said and "answers are not concerned" in said
    filled(keeper, 1, rng)
    until(recorder.KEPT, kept + 1)
    keeper.close()
    assert len(rows_of(path)) == 1
    assert count(recorder.LOST) - lost == 2


def png(grey: np.ndarray) -> bytes:
    return encode(Image.fromarray(grey))


def everything(client: TestClient, grey: np.ndarray) -> int:
    """Sends pictures and a volume everywhere, under names that must not be kept."""
    volume = series(PatientID="HIDDEN-7", PatientName="Doe^Jane")
    picture, one = png(grey), dicom_bytes(volume[0])
    head = {"X-Request-ID": "patient-17"}
    for path, files in (
        ("/segment", {"file": ("Doe_Jane.png", picture)}),
        ("/segment", {"file": ("HIDDEN-7.dcm", one)}),
        ("/upload", {"file": ("Doe_Jane.png", picture)}),
        ("/studies", {"file": ("Doe_Jane.png", picture)}),
        ("/segment/volume", {"file": ("Doe_Jane.zip", series_zip(volume))}),
    ):
        answer = client.post(path, files=files, headers=head)
        assert answer.status_code == 200, answer.text
    many = [("files", (f"Doe_{k}.png", picture)) for k in range(3)]
    assert client.post("/segment/batch", files=many, headers=head).status_code == 200
    return 4 + len(volume) + 3


def test_rows_are_what_was_found_and_name_nobody(
    model, tmp_path, monkeypatch, greys, capsys
) -> None:
    path = tmp_path / "statistics.db"
    monkeypatch.setenv(recorder.VARIABLE, str(path))
    with in_process(model) as client:
        sent = everything(client, greys[0])
        answer = client.post("/segment", files={"file": ("a.png", png(greys[1]))}).json()
    rows = rows_of(path)  # written at the latest when the service ended
    assert len(rows) == sent + 1
    expected = familiarity.statistics(greys[1], SIDE)
    (row,) = [r for r in rows if np.allclose([r[name] for name in NAMES], expected, atol=1e-4)]
    assert row["area_fraction"] == pytest.approx(answer["area_fraction"], abs=1e-6)
    assert row["confidence"] == pytest.approx(answer["confidence"], abs=1e-4)
    assert row["warned"] == bool(answer["warnings"])

    assert set(rows[0]) == {
        "id", "hour", "request", "digest", "area_fraction", "confidence", "warned", *NAMES,
    }  # fmt: skip
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d", row["hour"]) for row in rows)
    assert {row["digest"] for row in rows} == {load_info(model).digest}
    content = b"".join(one.read_bytes() for one in tmp_path.glob("statistics.db*"))
    for secret in (b"Doe", b"HIDDEN", b"patient-17", b"testclient", b"127.0.0.1", b".png"):
        assert secret not in content
    requests = [row["request"] for row in rows]
    assert sorted(map(requests.count, set(requests))) == [1, 1, 1, 1, 1, 3, COUNT]
    log = capsys.readouterr().out
    assert log.count('"route"') >= 5
    assert not [number for number in requests if str(number) in log]


@pytest.mark.long
def test_metrics_count_rows_and_sigterm_writes_what_waits(model, tmp_path, greys) -> None:
    path = tmp_path / "statistics.db"
    log = tmp_path / "serve.log"
    more = {"TUMORSEG_MODEL": str(model), recorder.VARIABLE: str(path)}
    process, url = start(SOURCE, log, **more)
    try:
        assert ready(process, url), log.read_text()
        answers: list[int] = []

        def send() -> None:
            files = {"file": ("a.png", png(greys[3]))}
            answers.append(httpx.post(f"{url}/segment", files=files, timeout=30).status_code)

        send()
        end = time.monotonic() + 30
        while "tumorseg_statistics_rows_total 1.0" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.2)
        for _ in range(3):
            send()
    finally:
        stop(process)
    assert answers == [200] * 4
    assert len(rows_of(path)) == 4, log.read_text()


def test_tumorseg_serve_keeps_a_record_unless_told_where(tmp_path, monkeypatch) -> None:
    from tumorseg import cli

    monkeypatch.chdir(tmp_path)
    packaged = {"tag": "tumorseg-service:1"}
    monkeypatch.setattr("tumorseg.registry.bento.ensure_current_bento", lambda: packaged)
    seen: list[str] = []
    monkeypatch.setattr(os, "execv", lambda *_: seen.append(os.environ[recorder.VARIABLE]))
    monkeypatch.setenv(recorder.VARIABLE, "elsewhere.db")
    cli.serve(host="127.0.0.1", port=3000)
    monkeypatch.delenv(recorder.VARIABLE)
    cli.serve(host="127.0.0.1", port=3000)
    monkeypatch.delenv(recorder.VARIABLE)
    assert seen == ["elsewhere.db", str(tmp_path / ".state" / "statistics.db")]
