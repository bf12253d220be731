"""A browser for the tests of pages: Chromium, driven by Playwright. Without both, the tests are skipped.

MEDLT_BROWSER names the program (by default `chromium` on the PATH, then Playwright's own), MEDLT_AXE the file
axe.min.js of the npm package axe-core, without which only the accessibility tests are skipped.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NETWORK = ("http:", "https:", "ws:", "wss:", "ftp:")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A running browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to run the browser tests")
    program = os.environ.get("MEDLT_BROWSER") or shutil.which("chromium")
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}; install chromium or set MEDLT_BROWSER")
        yield started
        started.close()


class Opened:
    """A page from file://, and what it did: messages of its console, errors, and requests that leave the machine."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda one: self.trouble.append(one.url) if one.url.startswith(NETWORK) else None)
        self.page.goto(file.as_uri(), wait_until="domcontentloaded", timeout=120_000)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a file in a window of its own; afterwards nothing may have gone wrong in it."""
    opened: list[Opened] = []

    def open_file(file: Path, **options: Any) -> Any:
        opened.append(Opened(browser, file, **options))
        return opened[-1].page

    yield open_file
    for one in opened:
        one.context.close()
    assert [trouble for one in opened for trouble in one.trouble] == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The text of axe-core."""
    file = Path(os.environ.get("MEDLT_AXE", "node_modules/axe-core/axe.min.js"))
    if not file.is_file():
        pytest.skip("npm install axe-core, or set MEDLT_AXE to its axe.min.js, to run the accessibility tests")
    return file.read_text()
