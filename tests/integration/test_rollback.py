"""Rollback: which champion it goes back to, what it cannot do, and one decision at a time."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.toy_registry import GOOD, POOR
from tumorseg.core.errors import InputError
from tumorseg.registry import runs, versions
from tumorseg.registry.decisions import Decision, previous

pytest_plugins = ["tests.support.champions"]


def test_rollback_names_what_it_cannot_do(place, built) -> None:
    with pytest.raises(InputError, match="no champion"):
        place.back()
    place.promote(place.register(POOR))
    with pytest.raises(InputError, match=r"no champion before version 1 .*complete are 1\)"):
        place.back()
    place.promote(place.register(GOOD))
    with pytest.raises(InputError, match="version 2 is the champion already"):
        place.back(to="2")
    with pytest.raises(InputError, match="no version '9': complete are 2, 1"):
        place.back(to="9")
    runs.connect().delete_model_version_tag(place.name, "1", versions.INFO_TAG)
    with pytest.raises(InputError, match="version 1 is incomplete"):
        place.back()
    assert place.alias() == "2" and built == []
    assert len(place.history()) == 2


def test_a_damaged_version_is_not_put_back(place, built) -> None:
    place.promote(place.register(POOR))
    place.promote(place.register(GOOD))
    digest = place.history()[0].challenger["digest"]
    files = (place.root / ".state").rglob("model.onnx")
    (stored,) = [path for path in files if versions.digest_of(path) == digest]
    stored.write_bytes(stored.read_bytes() + b"\0")
    with pytest.raises(InputError, match="damaged"):
        place.back()
    assert place.alias() == "2" and len(place.history()) == 2 and built == []


def decision(what: str, before: str | None, serving: str) -> Decision:
    champion = None if before is None else {"version": before}
    return Decision(what, "", {"version": serving}, champion, serving, {})


THREE = [("first", None, "1"), ("promoted", "1", "2"), ("promoted", "2", "3")]


@pytest.mark.parametrize(
    ("story", "current", "found"),
    [
        ([], "1", None),
        ([("first", None, "1")], "1", None),
        ([("first", None, "1"), ("promoted", "1", "2")], "2", "1"),
        ([("promoted", "1", "2")], "2", "1"),  # 1 was champion before there was a story
        ([("first", None, "1"), ("promoted", "1", "2"), ("rollback", "2", "1")], "1", None),
        ([*THREE, ("rollback", "3", "2")], "2", "1"),
        ([*THREE, ("rollback", "3", "1"), ("rollback", "1", "3")], "3", "1"),
        ([("first", None, "1"), ("promoted", "1", "2"), ("same", "2", "3")], "3", "1"),
        ([("first", None, "1"), ("refused", "1", "1")], "1", None),
        ([("first", None, "1"), ("promoted", "1", "2")], "1", None),  # not carried out
        ([*THREE, ("promoted", "2", "4")], "4", "2"),  # 3 was not carried out
        ([("first", None, "1"), ("promoted", "1", "2")], "7", "2"),  # moved by hand
    ],
)
def test_the_champion_before(story, current, found) -> None:
    assert previous([decision(*one) for one in story], current) == found


def test_one_process_decides_at_a_time(tmp_path) -> None:
    path = tmp_path / "state" / "some.lock"

    def take() -> None:
        with versions.locked(path, 0.2):
            pass

    with ThreadPoolExecutor(1) as other:
        with versions.locked(path, 1), pytest.raises(InputError, match=r"some\.lock: is held by"):
            other.submit(take).result()
        other.submit(take).result()  # free again
