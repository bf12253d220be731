"""A browser for the tests of pages: Chromium, driven by Playwright. Without one the tests are skipped.

MEDLT_BROWSER names the program: by default `chromium` on the PATH, then that of chromium.sh, then Playwright's own.
"""

import os
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

DOWNLOADED = Path(__file__).parents[2] / ".chromium" / "chromium"

NETWORK = ("http:", "https:", "ws:", "wss:", "ftp:")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A running browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to run the browser tests")
    own = str(DOWNLOADED) if DOWNLOADED.is_file() else None
    program = os.environ.get("MEDLT_BROWSER") or shutil.which("chromium") or own
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}; run `make browser`, or set MEDLT_BROWSER")
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
    pytest.importorskip("axe_playwright_python", reason="pip install axe-playwright-python to test accessibility")
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
