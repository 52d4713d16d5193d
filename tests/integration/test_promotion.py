"""Promotion, rollback and packaging on a real MLflow, with a process that ends anywhere."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from mlflow.tracking import MlflowClient

from tests.support.toy_registry import GOOD, MIDDLING, POOR
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.registry import bento, gate, runs, versions
from tumorseg.registry.decisions import Decision, previous

pytest_plugins = ["tests.support.champions"]


def test_first_then_better_then_worse(place) -> None:
    first = place.promote(place.register(POOR))
    assert (first.decision, first.champion, first.serving, place.alias()) == (
        "first", None, "1", "1",
    )  # fmt: skip
    better = place.promote(place.register(GOOD))
    assert (better.decision, better.before, better.serving) == ("promoted", "1", "2")
    assert better.figures["difference"]["mean"] > 0.35 and better.caveats == []
    candidate = place.register(POOR)
    worse = place.promote(candidate)
    assert (worse.decision, worse.serving, place.alias()) == ("refused", "2", "2")
    for margin in ("promote.max_loss", "promote.min_gain", "promote.max_stratum_loss"):
        assert margin in worse.why
    assert place.promote(candidate) == worse  # the same decision again is not recorded again
    assert place.history() == [first, better, worse]
    assert {made.who for made in place.history()} == {"jane"}
    assert set(worse.lineage) == {"git_sha", "data_md5", "lock_digest"}

    page = worse.page()
    assert runs.connect().get_model_version(place.name, "3").description == page
    assert page.startswith("# Promotion: refused\n")
    gap = worse.figures["difference"]
    words = [
        "12 slices of the test split, of 12 guessed groups",
        worse.when,
        worse.challenger["digest"][:12],
        f"{gap['mean']:+.4f}",
    ]
    assert all(word in page for word in [*words, *(s["stratum"] for s in worse.figures["strata"])])


def test_the_champion_s_own_network_takes_its_place(shop) -> None:
    again = shop.promote(shop.register(MIDDLING))
    assert (again.decision, shop.alias()) == ("same", "4")
    other = shop.promote(shop.register((MIDDLING[0], 0.999999)))  # at another threshold
    assert other.decision == "refused"


def test_a_network_that_was_rolled_back_from_is_not_promoted(shop, built) -> None:
    _, middling, good = shop.candidates
    made = shop.back(reason="misses small ones")
    assert (made.before, made.serving, shop.alias(), built) == ("2", "1", "1", ["1"])
    again = shop.promote(shop.register(MIDDLING))  # trained again to the same weights
    assert again.decision == "refused" and shop.alias() == "1"
    for words in ("jane rolled back", "misses small ones", "--to 4"):
        assert words in again.why
    assert shop.promote(good).decision == "promoted"
    assert shop.back(to="2", reason="it was the scanner").serving == "2"
    assert shop.promote(middling).decision == "same"


def test_an_incomplete_or_foreign_challenger_moves_nothing(shop) -> None:
    good = shop.candidates[2]
    with pytest.raises(InputError, match="another MLflow"):
        shop.promote(good | {"digest": "0" * 64})
    runs.connect().delete_model_version_tag(shop.name, "3", versions.INFO_TAG)
    with pytest.raises(InputError, match="version 3 is incomplete"):
        shop.promote(good)
    assert shop.alias() == "2" and len(shop.history()) == 2


def test_a_champion_that_changed_meanwhile_stays(shop, monkeypatch) -> None:
    caveats = gate.caveats

    def while_another_machine_promotes(*args) -> list[str]:
        versions.set_champion(shop.name, "1")
        return caveats(*args)

    monkeypatch.setattr(gate, "caveats", while_another_machine_promotes)
    with pytest.raises(InputError, match="changed while this was decided, from version 2 to 1"):
        shop.promote(shop.candidates[2])
    assert shop.alias() == "1" and len(shop.history()) == 2


class Killed(BaseException):
    """The process ended here."""


DESCRIBED = (MlflowClient, "update_model_version")
RECORDED = (MlflowClient, "set_model_version_tag")
MOVED = (MlflowClient, "set_registered_model_alias")
PACKAGED = (bento, "package_champion")


@pytest.mark.parametrize(
    ("what", "step"),
    [
        *(("promoted", step) for step in (DESCRIBED, RECORDED, MOVED)),
        ("refused", RECORDED),
        *(("rollback", step) for step in (DESCRIBED, RECORDED, MOVED, PACKAGED)),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else value,
)
def test_a_decision_that_was_killed_is_finished_by_the_same_command(
    shop, built, monkeypatch, what, step
) -> None:
    """After each write the alias is on a complete version, and nothing is recorded twice."""
    poor, _, good = shop.candidates
    run, serving = {
        "promoted": (partial(shop.promote, good), "3"),
        "refused": (partial(shop.promote, poor), "2"),
        "rollback": (shop.back, "1"),
    }[what]
    work = getattr(*step)

    def last(*args, **kwargs):
        work(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*step, last)
        with pytest.raises(Killed):
            run()
    assert shop.whole()
    if step != PACKAGED:  # the last step of a rollback, which is over by then
        made = run()
        assert (made.decision, made.serving) == (what, serving)
    assert shop.whole() and shop.alias() == serving
    assert [made.decision for made in shop.history()] == ["first", "promoted", what]
    assert what != "rollback" or built == [serving]  # and not one version further


def test_without_a_champion_there_is_no_rollback(place) -> None:
    with pytest.raises(InputError, match="no champion to roll back from"):
        place.back()


def test_a_rollback_that_is_impossible_changes_nothing(shop, built) -> None:
    with pytest.raises(InputError, match="version 2 is the champion already"):
        shop.back(to="2")
    with pytest.raises(InputError, match="no version '9': complete are 3, 2, 1"):
        shop.back(to="9")
    info = shop.candidates[0] | {"digest": "0" * 64, "test": {}}
    runs.connect().set_model_version_tag(shop.name, "1", versions.INFO_TAG, json.dumps(info))
    with pytest.raises(InputError, match="damaged"):
        shop.back()
    assert shop.alias() == "2" and built == [] and len(shop.history()) == 2
    versions.set_champion(shop.name, "1")
    with pytest.raises(InputError, match=r"no champion before version 1 .*complete are 3, 2, 1\)"):
        shop.back()


ONE = [("first", None, "1")]
TWO = [*ONE, ("promoted", "1", "2")]
THREE = [*TWO, ("promoted", "2", "3")]


@pytest.mark.parametrize(
    ("story", "current", "found"),
    [
        ([], "1", None),
        (ONE, "1", None),
        (TWO, "2", "1"),
        ([*ONE, ("refused", "1", "1")], "1", None),
        ([*TWO, ("same", "2", "3")], "3", "1"),
        ([*TWO, ("rollback", "2", "1")], "1", None),
        ([*THREE, ("rollback", "3", "2")], "2", "1"),
        ([*THREE, ("rollback", "3", "1"), ("rollback", "1", "3")], "3", "1"),
        (TWO, "1", None),  # the alias was not moved
        ([*THREE, ("promoted", "2", "4")], "4", "2"),  # nor here, to 3
        (TWO, "7", "2"),  # moved by hand
    ],
)
def test_the_champion_before(story, current, found) -> None:
    decisions = [
        Decision(what, "", {"version": after}, before and {"version": before}, after, {})
        for what, before, after in story
    ]
    assert previous(decisions, current) == found


def test_one_process_decides_at_a_time(tmp_path) -> None:
    path = tmp_path / "state" / "some.lock"

    def take() -> None:
        with versions.locked(path, 0.2):
            pass

    with ThreadPoolExecutor(1) as other:
        with versions.locked(path, 1), pytest.raises(InputError, match=r"some\.lock: is held by"):
            other.submit(take).result()
        other.submit(take).result()  # free again


@pytest.mark.parametrize(
    ("packaged", "builds"),
    [
        ({"version": "2"}, []),
        ({"version": "7"}, ["2"]),
        ({"digest": "0" * 64}, ["2"]),
        (None, ["2"]),
    ],
)
def test_another_bento_than_the_champion_s_is_replaced(
    shop, built, capsys, packaged, builds
) -> None:
    if packaged is not None:
        write_json(bento.PACKAGED, {"tag": "t"} | shop.candidates[1] | packaged)
    assert bento.ensure_current_bento()["version"] == "2" and built == builds
    assert ("packaging it first" in capsys.readouterr().err) == bool(builds)


@pytest.mark.parametrize(
    "uri", ["sqlite:///nowhere.db", "http://127.0.0.1:9", "sqlite:////dev/null"]
)
def test_without_mlflow_the_last_bento_is_served(place, built, capsys, monkeypatch, uri) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    about = {"tag": "t", "version": "7", "run_id": "r", "digest": "0" * 64}
    for damaged in ({}, [], {"tag": "t"}):
        write_json(bento.PACKAGED, damaged)
        with pytest.raises(InputError, match=r"bento\.json: is missing or damaged; type .+, or"):
            bento.ensure_current_bento(", or else")
    write_json(bento.PACKAGED, about)
    capsys.readouterr()
    assert bento.ensure_current_bento() == about and built == []
    printed = capsys.readouterr().err
    assert "MLflow cannot be reached" in printed and "packaged is version 7" in printed
    assert not (place.root / "nowhere.db").exists()
