"""What a retraining did and why, as a page: for Prefect's artifacts and reports/retrain.md."""

from collections import Counter
from typing import Any

from tumorseg.importers.inbox import REASONS
from tumorseg.reporting.wording import fill


def page(**facts: Any) -> str:
    """The page as Markdown; it names no file and no patient, batches by eight digits.

    Args:
        facts: when (the time) and because (who or what asked for the run), as text; taken, the
            `tumorseg.importers.intake.Taken` of the batches that came in since the last page;
            waiting, the number of batches that still change; version, the md5 of the data that was
            trained on; ran and current, the stages that DVC ran and those that were up to date;
            decision, as stage `promote` wrote it, or None; failure, the error as text, or None.
    """
    refused = Counter[str]()
    for batch in facts["taken"]:
        refused.update(batch.refused)
    reasons = {REASONS[key]: number for key, number in refused.most_common()}
    return fill("retrain.md", facts | {"refused": reasons})
