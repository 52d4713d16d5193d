"""What is served is what the registry says, or what was packaged last."""

import json

import pytest

from tests.toy_registry import GOOD
from tumorseg.core.errors import InputError
from tumorseg.registry import packaging

pytest_plugins = ["tests.champions"]


@pytest.mark.parametrize(
    ("kept", "said", "builds"),
    [
        ({"version": "1"}, "", []),
        ({"version": "7"}, "packaged is version 7", ["1"]),
        ({"version": "1", "digest": "0" * 64}, "packaging the champion first", ["1"]),
        (None, "packaged is nothing", ["1"]),
    ],
)
def test_serving_reconciles_with_the_registry(place, built, capsys, kept, said, builds) -> None:
    candidate = place.register(GOOD)
    place.promote(candidate)
    if kept is not None:
        path = place.root / packaging.PACKAGED
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"tag": "t"} | candidate | kept))
    capsys.readouterr()
    found = packaging.reconcile()
    assert found is not None and found["version"] == "1" and built == builds
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == len(builds) and all(said in line for line in printed)


@pytest.mark.parametrize(
    "uri", ["sqlite:///nowhere.db", "http://127.0.0.1:9", "sqlite:////dev/null"]
)
def test_without_mlflow_what_is_packaged_is_served_and_said_to_be(
    place, built, capsys, monkeypatch, uri
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=r"bento\.json: is missing or damaged; type .+, or"):
        packaging.reconcile(", or else")
    path = place.root / packaging.PACKAGED
    path.parent.mkdir(parents=True)
    for damaged in ("{", "[]", '{"tag": "t"}'):
        path.write_text(damaged)
        with pytest.raises(InputError, match="is missing or damaged"):
            packaging.reconcile()
    capsys.readouterr()
    about = {"tag": "t", "version": "7", "run_id": "r", "digest": "0" * 64}
    path.write_text(json.dumps(about))
    found = packaging.reconcile()
    assert found is not None and found["version"] == "7" and built == []
    printed = capsys.readouterr().err.splitlines()
    (line,) = [one for one in printed if one.startswith("tumorseg: ")]
    assert "cannot be asked" in line and "packaged is version 7" in line
    assert not (place.root / "nowhere.db").exists()
