"""Rollback: which champion it goes back to, what it cannot do, and one decision at a time."""

from datetime import UTC, datetime

import pytest

from tests.toy_registry import GOOD, POOR
from tumorseg.core.errors import InputError
from tumorseg.core.files import locked
from tumorseg.registry import history
from tumorseg.registry import runs as tracking
from tumorseg.registry import versions as registry

pytest_plugins = ["tests.champions"]


def test_rollback_names_what_it_cannot_do(place, built) -> None:
    with pytest.raises(InputError, match="no champion"):
        place.back()
    place.promote(place.register(POOR))
    with pytest.raises(InputError, match=r"knows no champion before version 1.*complete are 1\)"):
        place.back()
    place.promote(place.register(GOOD))
    with pytest.raises(InputError, match="version 2 is the champion already"):
        place.back(to="2")
    with pytest.raises(InputError, match="no version '9': complete are 2, 1"):
        place.back(to="9")
    with pytest.raises(InputError, match="--reason"):
        place.back(reason="x" * 2000)
    store, _ = tracking.client(place.target.experiment)
    store.delete_model_version_tag(place.target.model_name, "1", registry.INFO_TAG)
    with pytest.raises(InputError, match="version 1 is incomplete"):
        place.back()
    assert place.alias() == "2" and built == []
    assert {e.state for e in place.story()} == {"done"} and len(place.story()) == 2


def test_a_damaged_version_is_not_put_back(place, built) -> None:
    place.promote(place.register(POOR))
    place.promote(place.register(GOOD))
    digest = place.story()[0].digest
    (stored,) = [
        path
        for path in (place.root / ".state").rglob("model.onnx")
        if registry.digest_of(path) == digest
    ]
    stored.write_bytes(stored.read_bytes() + b"\0")
    with pytest.raises(InputError, match="damaged"):
        place.back()
    assert place.alias() == "2" and place.story()[-1].state == "dropped" and built == []
    # What never was carried out bars nobody.
    assert history.rejected(place.story()) == {}


def event(what: str, before: str | None, after: str, state: str = "done") -> history.Event:
    digest, left = f"d{after}", None if before is None else f"d{before}"
    when = datetime.now(UTC)
    return history.Event("", when, "", what, after, before, after, digest, left, "", {}, state)


THREE = [("first", None, "1"), ("promoted", "1", "2"), ("promoted", "2", "3")]


@pytest.mark.parametrize(
    ("story", "current", "found"),
    [
        ([], "1", None),
        ([("first", None, "1")], "1", None),
        ([("first", None, "1"), ("promoted", "1", "2")], "2", "1"),
        ([("promoted", "1", "2")], "2", "1"),  # 1 was champion before there was a story
        ([("first", None, "1"), ("promoted", "1", "2"), ("rollback", "2", "1")], "1", None),
        (
            [*THREE, ("rollback", "3", "2")],
            "2",
            "1",
        ),
        (
            [*THREE, ("rollback", "3", "1"), ("rollback", "1", "3")],
            "3",
            "1",
        ),
        ([("first", None, "1"), ("promoted", "1", "2"), ("same", "2", "3")], "3", "1"),
        ([("first", None, "1"), ("refused", "1", "1")], "1", None),
        ([("first", None, "1"), ("promoted", "1", "2", "dropped")], "1", None),
        ([("first", None, "1"), ("promoted", "1", "2")], "7", "2"),  # moved by hand
    ],
)
def test_the_champion_before(story, current, found) -> None:
    assert history.previous([event(*one) for one in story], current) == found


def test_one_decides_at_a_time(tmp_path) -> None:
    path = tmp_path / "some.lock"
    told = pytest.raises(InputError, match=r"some\.lock: is held by process \d+ \(promote\)")
    with locked(path, "promote", 1), told, locked(path, "rollback", 0.2):
        pass
    with locked(path, "rollback", 0):  # free again
        pass
