"""Figures as text for pages and cards: one way to print a number, and one for a missing one."""

import math
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

NOTHING = "–"


def missing(value: Any) -> bool:
    """Whether a figure is None or not a number, and so has nothing to print."""
    return value is None or bool(pd.isna(value))


def fixed(value: Any, digits: int = 3) -> str:
    """A number with so many decimals, or a dash."""
    return NOTHING if missing(value) else f"{value:.{digits}f}"


def signed(value: Any, digits: int = 3) -> str:
    """As `fixed`, with the sign also where it is plus."""
    return NOTHING if missing(value) else f"{value:+.{digits}f}"


def percent(value: Any, digits: int = 1) -> str:
    """A share as a percentage, or a dash."""
    return NOTHING if missing(value) else f"{100 * value:.{digits}f}%"


def span(low: Any, high: Any, digits: int = 3) -> str:
    """The two ends of an interval of figures that are never negative, or a dash."""
    if missing(low) or missing(high):
        return NOTHING
    return f"{low:.{digits}f}–{high:.{digits}f}"


def with_span(value: Any, low: Any, high: Any, digits: int = 3) -> str:
    """A figure with its interval in brackets, or one dash."""
    if missing(value):
        return NOTHING
    return f"{fixed(value, digits)} ({span(low, high, digits)})"


def signed_span(low: Any, high: Any, digits: int = 3) -> str:
    """The two ends of an interval of differences, or a dash."""
    if missing(low) or missing(high):
        return NOTHING
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


def whole(value: Any) -> str:
    """A count with its thousands apart, or a dash."""
    return NOTHING if missing(value) else f"{int(value):,}".replace(",", "\u202f")


def p_value(value: Any) -> str:
    """A p-value to three decimals; what is smaller is said to be."""
    if missing(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: Any) -> str:
    """A time in the units in which people say it, or a dash."""
    if missing(seconds):
        return NOTHING
    if not math.isfinite(seconds) or seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def markdown(text: Any) -> str:
    """Text of others for a Markdown table: it can end no cell and open no tag."""
    plain = " ".join(str(text).split())
    for mark, escaped in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        plain = plain.replace(mark, escaped)
    for mark in "`*_[]":
        plain = plain.replace(mark, "\\" + mark)
    return plain


def fill(template: str, values: dict[str, Any]) -> str:
    """Renders a template of this package.

    Args:
        template: Its file name; in `.html` whatever is put in is escaped.
        values: What it names. A name that is not there is an error, not a gap in the page.
    """
    environment = Environment(
        autoescape=template.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    filters = (fixed, signed, percent, whole, p_value, duration, markdown)
    environment.filters |= {made.__name__: made for made in filters}
    environment.globals |= {"span": span, "with_span": with_span, "signed_span": signed_span}
    text = resources.files("tumorseg.reporting").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)
