"""The comparison in words: one sentence, and a page of Markdown."""

from typing import Any

from tumorseg.monitoring.drift import DRIFT, SHOWN, TOO_FEW

_ROWS = 12  # statistics that are shown at least
_HEAD = " / ".join(f"{p:.0%}" for p in SHOWN)


def sentence(result: dict[str, Any]) -> str:
    """The verdict, from what `tumorseg.monitoring.drift.judge` returned.

    Args:
        result: The same, if need be with `others`, the number of slices that other models answered;
            None where nothing has been recorded at all.
    """
    served = f"{result['slices']} slices served since {result['since']}"
    if result["verdict"] == TOO_FEW:
        if result.get("others", 0) is None:
            return "Too few slices: there is no record of what was served."
        if not result["slices"]:
            return (
                "Too few slices: the packaged model has answered none within drift.window_hours"
                f"{_others(result.get('others', 0))}."
            )
        return f"Too few slices: {_came(result)}; {result['reason']}."
    columns = result["columns"]
    outside = [column for column in columns if column["outside"]]
    if result["verdict"] == DRIFT:
        first = outside[0]
        return (
            f"Drift: {len(outside)} of {len(columns)} statistics of the {served} are others than "
            f"those of the training slices, most of all {first['name']} "
            f"({first['moved']:.1f} standard deviations)."
        )
    coarsest = max(column["noticeable"] for column in columns)
    return (
        f"No drift shown: all {len(columns)} statistics of the {served} are as those of the "
        f"training slices; what moves fewer than {coarsest:.0%} of them might go unnoticed."
    )


def markdown(result: dict[str, Any], alpha: float, window_hours: int) -> str:
    """The page.

    Args:
        result: From `judge`, with `model` (its version and digest) and `sentence`.
        alpha: The level of the comparison.
        window_hours: The length of the window.
    """
    model = result["model"]
    lines = [
        "# Drift",
        "",
        f"**{result['sentence']}**",
        "",
        f"- Model: version {model['version']}, sha256 `{model['digest'][:12]}`; slices that "
        "another one answered do not count.",
        f"- Window: the last {window_hours} hours; {_came(result)}.",
    ]
    if result["slices"]:
        lines.append(
            f"- Warned about: {result['warned']:.1%} of the slices; about 1% of the validation "
            "slices would be."
        )
        lines.append(
            f"- Called tumour: {result['area_fraction']:.2%} of a slice on average; mean "
            f"confidence {_number(result['confidence'])}."
        )
    if not result["columns"]:
        return "\n".join([*lines, ""])
    shown = [column for column in result["columns"] if column["outside"]]
    shown += [column for column in result["columns"] if not column["outside"]]
    shown = shown[: max(_ROWS, sum(column["outside"] for column in shown))]
    lines += [
        "",
        f"| statistic | training {_HEAD} | served {_HEAD} | moved | worth | outside |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for column in shown:
        training, served = (
            " / ".join(map(_number, column[side])) for side in ("training", "window")
        )
        lines.append(
            f"| {column['name']} | {training} | {served} | {column['moved']:.2f} "
            f"| {column['effective']:.0f} | {'yes' if column['outside'] else 'no'} |"
        )
    lines += [
        "",
        f"The {len(shown)} of {len(result['columns'])} statistics that moved most: quantiles in "
        "training and validation slices and in served ones; by how many standard deviations of "
        "training a quantile moved at most; how many independent slices the served ones are worth; "
        "whether a quantile lies outside the band in which all lie together, without drift, with "
        f"probability {1 - alpha:g}. All bands: reports/drift_docs/index.html.",
        "",
    ]
    return "\n".join(lines)


def _others(count: int) -> str:
    """What to do where another model answers."""
    if not count:
        return ""
    return f", and others {count}: a service that runs takes the packaged one when it starts anew"


def _came(result: dict[str, Any]) -> str:
    return (
        f"{result['slices']} slices in {result['requests']} requests and {result['hours']} "
        "different hours"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
