"""Writes the pictures of the review page for docs/images, from the phantom: python tests/browser/pictures.py"""

import io
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pandas as pd
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import medlt
from medlt.data.loaders import images
from medlt.review.answers import QUESTIONS, AnswerFile, reader_file
from medlt.review.server import Reading, ReviewServer

ROOT = Path(__file__).parents[2]
SIZE = 320


def phantom(folder: Path) -> Reading:
    """Phantom images of six findings."""
    manifest = medlt.Collection.from_phantom(folder / "phantom", 30, seed=5, size=SIZE, imbalance=4).manifest
    findings = ["Mass", "Pneumothorax", "Effusion", "Nodule", "Cardiomegaly", "Consolidation"]
    rows: pd.DataFrame = manifest.rows[manifest.rows["view"] == "PA"]
    uids = list(dict.fromkeys(rows.index[rows[finding] == 1][0] for finding in findings))
    answers = AnswerFile.open(reader_file(folder, "anna"))
    return Reading(uids, findings[: len(uids)], images(manifest, SIZE, uids), answers, 0, tuple(QUESTIONS))


def picture(page: Page, name: str) -> None:
    """Write what the page shows, in 96 colours."""
    page.wait_for_timeout(300)
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shown.quantize(96, dither=Image.Dither.NONE).save(ROOT / "docs" / "images" / f"review_{name}.png", optimize=True)


def main() -> None:
    """Take the pictures."""
    own = ROOT / ".chromium" / "chromium"
    program = os.environ.get("MEDLT_BROWSER") or shutil.which("chromium") or (str(own) if own.is_file() else None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        server = ReviewServer(phantom(Path(folder)))
        threading.Thread(target=server.serve, daemon=True).start()
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 740})
        page.goto(server.address)
        page.locator("legend").first.wait_for()
        page.keyboard.type("rpn")
        page.keyboard.press("Enter")
        page.keyboard.type("sp")
        page.evaluate("document.querySelector('#frame img').decode()")
        picture(page, "page")
        page.keyboard.press("?")
        picture(page, "keys")
        browser.close()
        server.stop()


if __name__ == "__main__":
    main()
