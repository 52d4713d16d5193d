"""Data Docs, Great Expectations' HTML site, made to call no other host."""

import os
import re
from pathlib import Path

from tumorseg.core.files import atomic_path

# Styles, scripts and logos from a dozen hosts: they would learn who opens the page, which offline
# would wait for them.
REMOTE = re.compile(
    r"""<script[^>]*\ssrc="https?:[^>]*>\s*</script>|<(?:link|img)[^>]*\s(?:href|src)="https?:[^>]*>""",
    re.IGNORECASE,
)
STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1180px; padding: 16px; }
td, th { border-bottom: 1px solid #e8ebee; padding: 4px 14px 4px 0; text-align: left; }
td { overflow-wrap: anywhere; vertical-align: top; }
.fa-check-circle::before { content: "met"; color: #1a7f4b; font-style: normal; }
.fa-times::before { content: "not met"; color: #b3261e; font-style: normal; }
.navbar, footer, .collapse pre { display: none; }
</style>"""


def settle(docs: Path, page: Path, name: str = "Data audit") -> None:
    """Makes Data Docs readable without a network, in place, with links to results and a page.

    Args:
        docs: The folder of Data Docs, just built.
        page: The page to link to, in the folder above or further up.
        name: The text of that link.

    Raises:
        RuntimeError: Data Docs lack results or a suite, so that links would be missing.
    """
    results = sorted((docs / "validations").rglob("*.html"))
    suites = sorted((docs / "expectations").rglob("*.html"))
    if not results or not suites:
        raise RuntimeError(f"{docs} has no results or no suite: Data Docs look different now")
    links = {name: page, "Results": results[-1], "Suite": suites[-1]}
    for path in docs.rglob("*.html"):
        bar = " · ".join(
            f'<a href="{os.path.relpath(target, path.parent)}">{word}</a>'
            for word, target in links.items()
        )
        text = REMOTE.sub("", path.read_text(encoding="utf-8"))
        head, body, rest = re.split(r"(<body[^>]*>)", text, maxsplit=1)
        with atomic_path(path) as temporary:
            temporary.write_text(f"{head}{body}{STYLE}<p>{bar}</p>{rest}", encoding="utf-8")
