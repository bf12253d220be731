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
    """A page, and what went wrong in it: errors of its console, and requests to anything but its own server.

    A page from file:// has no server.
    """

    def __init__(self, browser: Any, place: Path | str, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.own = (place,) if isinstance(place, str) else ()
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda one: None if self.allows(one.url) else self.trouble.append(one.url))
        address = place if isinstance(place, str) else place.as_uri()
        self.page.goto(address, wait_until="domcontentloaded", timeout=120_000)

    def allows(self, url: str) -> bool:
        return url.startswith(self.own) or not url.startswith(NETWORK)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a file, or an address, in a window of its own; afterwards nothing may have gone wrong in it."""
    opened: list[Opened] = []

    def open_place(place: Path | str, **options: Any) -> Any:
        opened.append(Opened(browser, place, **options))
        return opened[-1].page

    yield open_place
    for one in opened:
        one.context.close()
    assert [trouble for one in opened for trouble in one.trouble] == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The text of axe-core."""
    pytest.importorskip("axe_playwright_python", reason="pip install axe-playwright-python to test accessibility")
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
