"""What is served is what the registry says, or what was packaged last."""

import json

import pytest

from tests.support.toy_registry import GOOD
from tumorseg.core.errors import InputError
from tumorseg.registry import bento

pytest_plugins = ["tests.support.champions"]


@pytest.mark.parametrize(
    ("noted", "message", "builds"),
    [
        ({"version": "1"}, "", []),
        ({"version": "7"}, "packaged is version 7", ["1"]),
        ({"version": "1", "digest": "0" * 64}, "packaging the champion first", ["1"]),
        (None, "packaged is nothing", ["1"]),
    ],
)
def test_the_champion_is_packaged_before_it_is_served(
    place, built, capsys, noted, message, builds
) -> None:
    candidate = place.register(GOOD)
    place.promote(candidate)
    if noted is not None:
        path = place.root / bento.PACKAGED
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"tag": "t"} | candidate | noted))
    capsys.readouterr()
    found = bento.ensure_current_bento()
    assert found is not None and found["version"] == "1" and built == builds
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == len(builds) and all(message in line for line in printed)


@pytest.mark.parametrize(
    "uri", ["sqlite:///nowhere.db", "http://127.0.0.1:9", "sqlite:////dev/null"]
)
def test_without_mlflow_what_is_packaged_is_served_and_said_to_be(
    place, built, capsys, monkeypatch, uri
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=r"bento\.json: is missing or damaged; type .+, or"):
        bento.ensure_current_bento(", or else")
    path = place.root / bento.PACKAGED
    path.parent.mkdir(parents=True)
    for damaged in ("{", "[]", '{"tag": "t"}'):
        path.write_text(damaged)
        with pytest.raises(InputError, match="is missing or damaged"):
            bento.ensure_current_bento()
    capsys.readouterr()
    about = {"tag": "t", "version": "7", "run_id": "r", "digest": "0" * 64}
    path.write_text(json.dumps(about))
    found = bento.ensure_current_bento()
    assert found is not None and found["version"] == "7" and built == []
    printed = capsys.readouterr().err.splitlines()
    (line,) = [one for one in printed if one.startswith("tumorseg: ")]
    assert "MLflow cannot be reached" in line and "packaged is version 7" in line
    assert not (place.root / "nowhere.db").exists()
