"""Great Expectations' Data Docs without their calls to other hosts, and with a way to the audit."""

import os
import re
from pathlib import Path

from tumorseg.files import atomic_path

# Styles, scripts and logos from a dozen hosts: whoever opens the page would tell them so, and
# offline it would wait for them.
REMOTE = re.compile(
    r"""<script[^>]*\ssrc="https?:[^>]*>\s*</script>|<(?:link|img)[^>]*\s(?:href|src)="https?:[^>]*>""",
    re.IGNORECASE,
)
STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1180px; padding: 16px; }
table { border-collapse: collapse; margin: 8px 0; }
td, th { border-bottom: 1px solid #e8ebee; padding: 4px 14px 4px 0; text-align: left; }
td { overflow-wrap: anywhere; vertical-align: top; }
.fa-check-circle::before { content: "met"; color: #1a7f4b; font-style: normal; }
.fa-times::before { content: "not met"; color: #b3261e; font-style: normal; }
th { white-space: nowrap; }
.alert { font-weight: 600; }
.navbar, footer, .collapse pre { display: none; }
</style>"""


def settle(docs: Path, audit: Path) -> None:
    """Rewrites every page in place.

    Args:
        docs: The folder of Data Docs, just built.
        audit: The audit's page, in the folder above or further up.

    Raises:
        RuntimeError: The pages look different than expected, so that links would be missing.
    """
    results = sorted((docs / "validations").rglob("*.html"))
    suites = sorted((docs / "expectations").rglob("*.html"))
    if not results or not suites:
        raise RuntimeError(f"{docs} has no results or no suite: Data Docs look different now")
    links = {"Data audit": audit, "Results": results[-1], "Suite": suites[-1]}
    for page in docs.rglob("*.html"):
        text = REMOTE.sub("", page.read_text(encoding="utf-8"))
        start = text.find("<body")
        if start < 0:
            raise RuntimeError(f"{page} has no <body>: Data Docs look different now")
        end = text.index(">", start) + 1
        bar = " · ".join(
            f'<a href="{os.path.relpath(target, page.parent)}">{name}</a>'
            for name, target in links.items()
        )
        with atomic_path(page) as temporary:
            temporary.write_text(f"{text[:end]}{STYLE}<p>{bar}</p>{text[end:]}", encoding="utf-8")
