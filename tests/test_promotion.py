"""Promotion and its story, on a real MLflow, with a process that ends anywhere."""

import mlflow
import pytest

from tests.toy_registry import BETTER, GOOD, POOR
from tumorseg.core.errors import InputError
from tumorseg.registry import history, promotion, rollback
from tumorseg.registry import runs as tracking
from tumorseg.registry import versions as registry

pytest_plugins = ["tests.champions"]


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
