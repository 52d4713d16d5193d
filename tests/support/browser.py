"""The page in headless Chromium, where there is one."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@contextmanager
def serving(app: Callable[..., Any]) -> Iterator[str]:
    """Serves a WSGI app with threads on a free port; gives its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def chromium() -> Iterator[Any]:
    """Starts the system's Chromium; skips the test, with a reason, where that is not possible."""
    reason = "no Playwright: pip install playwright pyee greenlet"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """The page with what one does on it; every error that its script raises fails the test."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console",
            lambda message: self.errors.append(message.text) if self._bad(message) else None,
        )

    @staticmethod
    def _bad(message: Any) -> bool:
        # The browser itself reports each answer that is no success; those belong to some tests.
        return message.type == "error" and "Failed to load resource" not in message.text

    def choose(self, *files: tuple[str, bytes]) -> None:
        """Chooses files, given as (name, content)."""
        payload = [
            {"name": name, "mimeType": "application/octet-stream", "buffer": data}
            for name, data in files
        ]
        self.page.set_input_files("#file", payload)

    def line(self, name: str) -> Any:
        """The line of the list that is about a file."""
        return self.page.locator("#studies li").filter(has_text=name)

    def ready(self, name: str) -> Any:
        """Waits until a file was segmented; returns its line."""
        line = self.line(name)
        line.locator(".open:enabled").wait_for()
        return line

    def text(self, name: str) -> str:
        """What the element of this id says."""
        return str(self.page.locator(f"#{name}").inner_text())

    def slide(self, name: str, value: float) -> None:
        """Moves the slider of this id."""
        self.page.locator(f"#{name}").fill(str(value))

    def painted(self) -> Any:
        """Counts the reddish pixels on the right-hand canvas, once it is drawn."""
        self.page.locator("#stage[aria-busy=false]").wait_for()
        return self.page.evaluate(
            """async () => {
              for (let n = 0; n < 3; n++) await new Promise(requestAnimationFrame);
              const canvas = document.getElementById("painted");
              const { width, height } = canvas, pen = canvas.getContext("2d");
              const { data } = pen.getImageData(0, 0, width, height);
              let count = 0;
              for (let at = 0; at < data.length; at += 4) count += data[at] > data[at + 1] + 40;
              return count;
            }"""
        )

    def download(self, button: str) -> tuple[str, bytes]:
        """Clicks a button by its id; returns name and content of the file that comes."""
        with self.page.expect_download() as coming:
            self.page.locator(f"#{button}").click()
        return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()


@contextmanager
def opened(browser: Any, app: Any, size: dict[str, int] = WIDE, **options: Any) -> Iterator[Page]:
    """Serves an app and opens its page in a session of its own."""
    with serving(app) as url:
        context = browser.new_context(viewport=size, **options)
        page = Page(context.new_page())
        page.page.goto(url)
        yield page
        context.close()
    assert page.errors == []
