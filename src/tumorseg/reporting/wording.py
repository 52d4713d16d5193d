"""Templates, and numbers as text."""

from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

MISSING = "–"


def number(value: Any, form: str = ".3f") -> str:
    """A number in Python's format, or a dash for None and NaN."""
    return MISSING if pd.isna(value) else format(value, form)


def with_interval(row: dict[str, Any], name: str, form: str = ".3f") -> str:
    """Figure `name` of a row with its interval, `name_low` to `name_high`, or a dash."""
    if pd.isna(row[name]):
        return MISSING
    low, high = (number(row[f"{name}_{end}"], form) for end in ("low", "high"))
    return f"{number(row[name], form)} ({low}–{high})"


def detected(row: dict[str, Any]) -> str:
    """Detection rate and share of slices with Dice 0, in percent, or dashes."""
    return " / ".join(number(row[name], ".1%") for name in ("detection_rate", "share_dice_zero"))


def p_value(value: Any) -> str:
    """A p-value to three decimals, or a dash."""
    return "< 0.001" if not pd.isna(value) and value < 0.001 else number(value)


def markdown(text: Any) -> str:
    """Text for a cell of a Markdown table, without line breaks, markup and tags."""
    plain = " ".join(str(text).split())
    for mark, escaped in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        plain = plain.replace(mark, escaped)
    for mark in "`*_[]":
        plain = plain.replace(mark, "\\" + mark)
    return plain


def fill(template: str, values: dict[str, Any]) -> str:
    """Renders a template of this package.

    Args:
        template: Its file name; in `.html` files values are escaped.
        values: Its variables; one that is missing is an error.
    """
    environment = Environment(
        autoescape=template.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "p_value": p_value, "markdown": markdown}
    environment.globals |= {"with_interval": with_interval, "detected": detected}
    text = resources.files("tumorseg.reporting").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)
