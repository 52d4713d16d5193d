"""Promotion, rollback and their story, on a real MLflow, with a process that ends anywhere."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from tests import toy_registry
from tests.toy_registry import BETTER, GOOD, MIDDLING, POOR, PRESENT
from tumorseg import history, packaging, promotion, registry, rollback, tracking
from tumorseg.data.manifest import load_manifest
from tumorseg.errors import InputError
from tumorseg.files import locked


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """MLflow's tables, whose making takes longer than any of these tests."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def stocked(tmp_path_factory, empty_store) -> SimpleNamespace:
    """An MLflow with a version of each toy network, 1 to 3; registering takes seconds."""
    root = tmp_path_factory.mktemp("stocked")
    shutil.copy(empty_store, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch, opened(root, patch) as place:
        candidates = [place.register(model) for model in (POOR, MIDDLING, GOOD)]
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

    def promote(candidate) -> promotion.Decision:
        return promotion.promote(candidate, target, params, rows, Path("data"), PRESENT)

    def alias() -> str | None:
        found = registry.champion(target.model_name, target.experiment)
        return None if found is None else str(found.version)

    def whole() -> bool:
        """Whether the alias is on a complete version whose file is the one registered."""
        version = alias()
        assert version is not None
        return bool(registry.fetch(target.model_name, version, target.experiment, root / "checked"))

    def back(to=None, reason=None) -> history.Event:
        return rollback.roll_back(target, package, to, reason)[0]

    yield SimpleNamespace(
        root=root, target=target, register=register, promote=promote, alias=alias, whole=whole,
        back=back, story=lambda: history.events(target),
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
    """A repository whose MLflow has versions 1 (poor), 2 (middling) and 3 (good)."""
    shutil.copy(stocked.path, tmp_path / "mlflow.db")
    with opened(tmp_path, monkeypatch) as made:
        made.candidates = stocked.candidates
        yield made


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """Versions that were packaged; making real bentos is what the CLI's tests do."""
    versions: list[str] = []

    def package(target, section):
        version = str(registry.champion(target.model_name, target.experiment).version)
        versions.append(version)
        return {"tag": "t", "version": version}

    monkeypatch.setattr(rollback, "package_champion", package)
    monkeypatch.setattr(packaging, "package_champion", package)
    return versions


def test_first_then_worse_then_better(place) -> None:
    first = place.promote(place.register(POOR))
    assert (first.decision, first.champion, first.serving, place.alias()) == (
        "first",
        None,
        "1",
        "1",
    )
    better = place.promote(place.register(GOOD))
    assert (better.decision, better.serving, place.alias()) == ("promoted", "2", "2")
    assert better.champion is not None and better.champion["version"] == "1"
    assert better.figures["difference"]["mean"] > 0.35 and better.caveats == []
    worse = place.promote(place.register(POOR))
    assert (worse.decision, worse.serving, place.alias()) == ("refused", "2", "2")
    assert "promote.max_loss" in worse.why and "promote.min_gain" in worse.why
    assert "max_stratum_loss" in worse.why

    story = place.story()
    told = [(e.what, e.before, e.after, e.version, e.state, e.who) for e in story]
    assert told == [
        ("first", None, "1", "1", "done", "jane"),
        ("promoted", "1", "2", "2", "done", "jane"),
        ("refused", "2", "2", "3", "done", "jane"),
    ]
    assert story[1].figures["gain"] == pytest.approx(better.figures["difference"]["mean"])
    assert story[1].digest == better.challenger["digest"] != story[1].before_digest
    kept = history.attached(place.target, story[2])
    assert kept is not None and promotion.Decision(**kept) == worse
    # What MLflow's pages of the run and of the version show.
    assert mlflow.get_run(story[2].id).data.tags["mlflow.note.content"] == worse.why
    version = mlflow.MlflowClient().get_model_version(place.target.model_name, "3")
    assert worse.why in version.description and "jane" in version.description


def test_the_page_says_what_was_compared_and_why(place) -> None:
    place.promote(place.register(POOR))
    made = place.promote(place.register(GOOD))
    page = made.page()
    assert page.startswith("# Promotion: promoted\n")
    for told in (
        "12 slices",
        "min_stratum_slices",
        made.when,
        "jane",
        made.challenger["digest"][:12],
    ):
        assert told in page
    gap = made.figures["difference"]
    assert f"{gap['mean']:+.4f}" in page and f"{gap['low']:+.4f} to {gap['high']:+.4f}" in page
    assert all(row["stratum"] in page for row in made.figures["strata"])


def test_a_champion_that_may_have_seen_the_test_slices_is_said(place) -> None:
    place.promote(place.register(POOR, split={"digest": "another"}))
    made = place.promote(place.register(GOOD))
    assert made.decision == "promoted" and len(made.caveats) == 1
    assert "may have been trained on some of the slices" in made.why
    assert made.caveats[0][1:] in made.page()


def test_the_same_network_described_anew_takes_the_place(place) -> None:
    place.promote(place.register(GOOD))
    anew = place.promote(place.register(GOOD))
    assert (anew.decision, place.alias()) == ("same", "2")
    assert anew.figures["difference"]["mean"] == 0
    other = place.promote(place.register((GOOD[0], 0.99)))  # at another threshold it is judged
    assert other.decision == "refused"


def test_deciding_again_records_nothing(place) -> None:
    place.promote(place.register(GOOD))
    refused = place.register(POOR)
    first = place.promote(refused)
    assert place.promote(refused) == first  # who and when included
    better = place.register(BETTER)
    again = [place.promote(better) for _ in range(2)]
    assert again[0] == again[1]
    assert [e.version for e in place.story()] == ["1", "2", "3"]


def test_what_a_person_went_back_from_is_never_promoted_again(place, built) -> None:
    place.promote(place.register(POOR))
    good = place.register(GOOD)
    place.promote(good)
    event = place.back(reason="misses small ones")
    assert (event.before, event.after, place.alias(), built) == ("2", "1", "1", ["1"])
    again = place.promote(place.register(GOOD))  # trained again to the same weights
    assert again.decision == "refused" and place.alias() == "1"
    assert "jane went back from this very network" in again.why
    assert "misses small ones" in again.why and "--to 3" in again.why
    assert place.promote(place.register(BETTER)).decision == "promoted"  # another network may
    assert place.back(to="2", reason="it was the scanner").after == "2"  # a person may, too
    assert place.promote(good).decision == "same"


def test_an_incomplete_challenger_moves_nothing(place) -> None:
    place.promote(place.register(POOR))
    candidate = place.register(GOOD)
    store, _ = tracking.client(place.target.experiment)
    store.delete_model_version_tag(place.target.model_name, "2", registry.INFO_TAG)
    with pytest.raises(InputError, match="version 2 is incomplete"):
        place.promote(candidate)
    assert place.alias() == "1" and len(place.story()) == 1


def test_a_candidate_of_another_mlflow_is_noticed(place) -> None:
    candidate = place.register(GOOD)
    with pytest.raises(InputError, match="another MLflow"):
        place.promote(candidate | {"digest": "0" * 64})
    assert place.alias() is None and place.story() == []


def test_a_champion_that_changed_meanwhile_stays(place, monkeypatch) -> None:
    place.register(POOR)
    place.promote(place.register(POOR))
    challenger = place.register(GOOD)
    attach = history.attach

    def attach_while_another_machine_promotes(*args) -> None:
        attach(*args)
        registry.promote(place.target.model_name, "1", place.target.experiment)

    monkeypatch.setattr(history, "attach", attach_while_another_machine_promotes)
    with pytest.raises(InputError, match="changed while this was decided, from version 2 to 1"):
        place.promote(challenger)
    assert place.alias() == "1" and place.story()[-1].state == "dropped"


class Killed(BaseException):
    """The process ended here."""


STEPS = [
    (module, name, when)
    for module, name in (
        (history, "intend"),
        (history, "attach"),
        (registry, "fetch"),
        (registry, "promote"),
        (history, "close"),
    )
    for when in ("before", "after")
]


def kill_at(monkeypatch, module, name: str, when: str) -> None:
    """Lets the next call of a function end the process, before or after its work."""
    work = getattr(module, name)

    def last(*args, **kwargs):
        if when == "after":
            work(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(module, name, last)


@pytest.mark.parametrize(
    ("promotes", "module", "name", "when"),
    [
        *((True, *one) for one in STEPS),
        *((False, *one) for one in STEPS if one[0] is history),  # a refusal moves nothing
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_promotion_that_was_killed_is_finished_by_the_next(
    shop, monkeypatch, promotes, module, name, when
) -> None:
    poor, middling, good = shop.candidates
    shop.promote(middling)
    challenger, expected = (good, ("promoted", "3")) if promotes else (poor, ("refused", "2"))
    with monkeypatch.context() as patch:
        kill_at(patch, module, name, when)
        with pytest.raises(Killed):
            shop.promote(challenger)
    assert shop.whole()
    made = shop.promote(challenger)
    assert (made.decision, shop.alias()) == expected and made.serving == shop.alias()
    assert [(e.what, e.state) for e in shop.story()] == [("first", "done"), (expected[0], "done")]
    assert history.attached(shop.target, shop.story()[-1]) is not None


@pytest.mark.parametrize(
    ("module", "name", "when"),
    [
        *(one for one in STEPS if one[1] != "attach"),
        (rollback, "package_champion", "before"),
        (rollback, "package_champion", "after"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_rollback_that_was_killed_is_finished_by_the_next(
    shop, built, monkeypatch, module, name, when
) -> None:
    assert [shop.promote(one).serving for one in shop.candidates] == ["1", "2", "3"]
    with monkeypatch.context() as patch:
        kill_at(patch, module, name, when)
        with pytest.raises(Killed):
            shop.back()
    assert shop.whole()
    if (name, when) != ("close", "after"):  # by then it was over
        shop.back()
    assert shop.alias() == "2" and built[-1] == "2"  # and not one further
    assert [e.what for e in shop.story()] == ["first", "promoted", "promoted", "rollback"]
    assert {e.state for e in shop.story()} == {"done"}


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
    assert packaging.reconcile() is None
    path = place.root / packaging.PACKAGED
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"tag": "t", "version": "7", "digest": "0" * 64}))
    found = packaging.reconcile()
    assert found is not None and found["version"] == "7" and built == []
    printed = capsys.readouterr().err.splitlines()
    (line,) = [one for one in printed if one.startswith("tumorseg: ")]
    assert "cannot be asked" in line and "packaged is version 7" in line
    assert not (place.root / "nowhere.db").exists()
