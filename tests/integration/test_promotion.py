"""Promotion and its record, on a real MLflow, with a process that ends anywhere."""

import pytest
from mlflow.tracking import MlflowClient

from tests.support.toy_registry import BETTER, GOOD, POOR
from tumorseg.core.errors import InputError
from tumorseg.registry import bento, gate, runs, versions

pytest_plugins = ["tests.support.champions"]


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

    recorded = place.history()
    assert recorded == [first, better, worse]
    assert [(made.before, made.serving, made.who) for made in recorded] == [
        (None, "1", "jane"),
        ("1", "2", "jane"),
        ("2", "2", "jane"),
    ]
    assert set(worse.lineage) == {"git_sha", "data_md5", "lock_digest"}
    # What MLflow's page of the version shows.
    description = runs.connect().get_model_version(place.name, "3").description
    assert description == worse.page() and "jane" in description


def test_the_page_says_what_was_compared_and_why(place) -> None:
    place.promote(place.register(POOR))
    made = place.promote(place.register(GOOD))
    page = made.page()
    assert page.startswith("# Promotion: promoted\n")
    for words in ("12 slices", "min_stratum_slices", made.when, made.challenger["digest"][:12]):
        assert words in page
    gap = made.figures["difference"]
    assert f"{gap['mean']:+.4f}" in page and f"{gap['low']:+.4f} to {gap['high']:+.4f}" in page
    assert all(row["stratum"] in page for row in made.figures["strata"])


def test_a_champion_that_may_have_seen_the_test_slices_is_a_caveat(place) -> None:
    place.promote(place.register(POOR, test_set={"images": "others", "slices": 9}))
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
    assert [made.version for made in place.history()] == ["1", "2", "3"]


def test_what_a_person_went_back_from_is_never_promoted_again(place, built) -> None:
    place.promote(place.register(POOR))
    good = place.register(GOOD)
    place.promote(good)
    made = place.back(reason="misses small ones")
    assert (made.before, made.serving, place.alias(), built) == ("2", "1", "1", ["1"])
    again = place.promote(place.register(GOOD))  # trained again to the same weights
    assert again.decision == "refused" and place.alias() == "1"
    assert "jane went back from this very network" in again.why
    assert "misses small ones" in again.why and "--to 3" in again.why
    assert place.promote(place.register(BETTER)).decision == "promoted"  # another network may
    assert place.back(to="2", reason="it was the scanner").serving == "2"  # a person may, too
    assert place.promote(good).decision == "same"


def test_an_incomplete_challenger_moves_nothing(place) -> None:
    place.promote(place.register(POOR))
    candidate = place.register(GOOD)
    runs.connect().delete_model_version_tag(place.name, "2", versions.INFO_TAG)
    with pytest.raises(InputError, match="version 2 is incomplete"):
        place.promote(candidate)
    assert place.alias() == "1" and len(place.history()) == 1


def test_a_candidate_of_another_mlflow_is_noticed(place) -> None:
    candidate = place.register(GOOD)
    with pytest.raises(InputError, match="another MLflow"):
        place.promote(candidate | {"digest": "0" * 64})
    assert place.alias() is None and place.history() == []


def test_a_champion_that_changed_meanwhile_stays(place, monkeypatch) -> None:
    place.register(POOR)
    place.promote(place.register(POOR))
    challenger = place.register(GOOD)
    caveats = gate.caveats

    def while_another_machine_promotes(*args) -> list[str]:
        versions.set_champion(place.name, "1")
        return caveats(*args)

    monkeypatch.setattr(gate, "caveats", while_another_machine_promotes)
    with pytest.raises(InputError, match="changed while this was decided, from version 2 to 1"):
        place.promote(challenger)
    assert place.alias() == "1" and len(place.history()) == 1


class Killed(BaseException):
    """The process ended here."""


DESCRIBED = (MlflowClient, "update_model_version")
RECORDED = (MlflowClient, "set_model_version_tag")
MOVED = (MlflowClient, "set_registered_model_alias")
PACKAGED = (bento, "package_champion")


@pytest.mark.parametrize(
    ("what", "step", "when"),
    [
        *(("promoted", *at) for at in [(DESCRIBED, "before"), (DESCRIBED, "after")]),
        *(("promoted", step, "after") for step in (RECORDED, MOVED)),
        *(("refused", step, "after") for step in (DESCRIBED, RECORDED)),
        ("rollback", DESCRIBED, "before"),
        *(("rollback", step, "after") for step in (DESCRIBED, RECORDED, MOVED, PACKAGED)),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else value,
)
def test_a_decision_that_was_killed_is_finished_by_the_same_command(
    shop, built, monkeypatch, what, step, when
) -> None:
    """Between any two writes the alias is on a complete version, and nothing is recorded twice."""
    poor, middling, good = shop.candidates
    if what == "rollback":
        start = [shop.promote(one).decision for one in (poor, middling, good)]
        run, serving = shop.back, "2"
    else:
        start = [shop.promote(middling).decision]
        challenger, serving = (good, "3") if what == "promoted" else (poor, "2")
        run = lambda: shop.promote(challenger)  # noqa: E731
    work = getattr(*step)

    def last(*args, **kwargs):
        if when == "after":
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
    assert [made.decision for made in shop.history()] == [*start, what]
    assert what != "rollback" or built == [serving]  # and not one version further
