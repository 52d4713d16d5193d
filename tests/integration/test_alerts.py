"""Alerts name nobody, and one that fails hides no failure."""

import pytest

from tests.support.webhook import webhook
from tumorseg.core.alerts import VARIABLE, alert, sentence
from tumorseg.core.errors import InputError, StageError


def test_what_is_posted(monkeypatch, capsys) -> None:
    assert not alert("retrain", "a", "b", None) and capsys.readouterr().out == ""
    with webhook() as receiver:
        monkeypatch.setenv(VARIABLE, receiver.url)
        receiver.statuses = [503]  # tried again
        assert alert("retrain", "repro train", "stage train failed", "http://prefect/runs/1")
        _, body = receiver.bodies
        assert body.pop("time").endswith("Z")
        assert body == {
            "flow": "retrain",
            "stage": "repro train",
            "sentence": "stage train failed",
            "run_url": "http://prefect/runs/1",
        }
        receiver.statuses = [500, 500]
        assert not alert("retrain", "a", "b", None)
    assert not alert("retrain", "a", "b", None)  # nobody listens there any more
    monkeypatch.setenv(VARIABLE, "no address: secret-token")
    assert not alert("retrain", "a", "b", None)
    printed = capsys.readouterr().out
    assert printed.count("could not be posted") == 3 and "secret" not in printed


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StageError("stage train failed; later ones not"), "stage train failed; later ones not"),
        (InputError("data/train/Jane Doe.png: is broken"), "InputError; the run's log says more"),
        (None, "it was cancelled or killed; the run's log says more"),
    ],
)
def test_a_sentence_names_no_file_of_the_data(error, words) -> None:
    assert sentence(error) == words
