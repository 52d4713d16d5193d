"""The page of a retraining: the decision on the champion, wherever the run ended."""

import pytest

from tests.support.retraining import DECISION
from tumorseg.reporting.retraining import page

PROMOTED = DECISION | {
    "decision": "promoted",
    "why": "promoted, mean Dice 0.6 against 0.5 of the champion",
    "serving": "2",
}


@pytest.mark.parametrize(
    ("ran", "failure", "title", "present", "absent"),
    [
        (["promote"], None, "a new champion", "Promoted, mean Dice 0.6", "failed"),
        (
            ["promote"],
            "git push failed",
            "a new champion, but it failed after that",
            "After it: git push failed.",
            "The champion is as it was",
        ),
        (
            ["train"],
            "stage evaluate failed",
            "it failed, and the champion stays",
            "None: stage evaluate failed. The champion is as it was.",
            "Promoted",
        ),
        ([], None, "nothing to decide", "None was due", "failed"),
    ],
)
def test_the_page_has_the_decision_after_a_failure_too(ran, failure, title, present, absent):
    text = page(
        when="2026-01-01",
        because="a test",
        taken=[],
        waiting=0,
        version="m",
        ran=ran,
        current=[],
        decision=PROMOTED,
        failure=failure,
    )
    assert f"# Retraining: {title}\n" in text and present in text and absent not in text
    assert "Champion now: version 2." in text
