"""What a retraining did and why, as a page: for Prefect's artifacts and reports/retrain.md."""

from collections import Counter
from typing import Any

from tumorseg.importers.inbox import REASONS
from tumorseg.importers.intake import Taken
from tumorseg.reporting.wording import fill

# A decision of stage `promote`, in a word for a heading.
TITLES = {
    "first": "the first champion",
    "promoted": "a new champion",
    "refused": "the champion stays",
    "same": "the champion's own network again",
}


def page(
    *,
    when: str,
    because: str,
    taken: list[Taken],
    waiting: int,
    version: str,
    ran: list[str],
    current: list[str],
    decision: dict[str, Any] | None,
    failure: str | None = None,
) -> str:
    """The page as Markdown; it names no file and no patient, batches by eight digits.

    Args:
        when: The time, for the heading.
        because: Who or what asked for it.
        taken: The batches that came in since the last page.
        waiting: How many lie in the inbox still, since they changed a moment ago.
        version: md5 of the data version that was trained on.
        ran: The stages that DVC ran, in order.
        current: Those of which nothing was out of date.
        decision: As stage `promote` wrote it; None where there is none yet.
        failure: What ended the run before its end, in a sentence.
    """
    refused: Counter[str] = Counter()
    for each in taken:
        refused.update(each.refused)
    decided = decision is not None and "promote" in ran
    if decision is not None and decided:
        title = TITLES.get(decision["decision"], decision["decision"])
        title += ", but it failed after that" if failure else ""
    elif failure:
        title = "it failed, and the champion stays"
    else:
        title = "nothing to decide"
    return fill(
        "retrain.md",
        {
            "title": title,
            "when": when,
            "because": because,
            "taken": taken,
            "refused": {REASONS[key]: number for key, number in refused.most_common()},
            "waiting": waiting,
            "before": taken[0].before if taken else version,
            "after": version,
            "ran": ran,
            "current": current,
            "decision": decision,
            "decided": decided,
            "failure": failure,
        },
    )
