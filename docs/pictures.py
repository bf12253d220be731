"""Writes the pictures of docs/images that show the demo and the review page.

    make demo browser && .venv/bin/python docs/pictures.py demo

Screenshots are taken by Playwright in the Chromium of `make browser`, or in the program that MEDLT_BROWSER names.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Browser, Page, sync_playwright

import medlt
from medlt.data.loaders import images
from medlt.report.panels import GAP, NAMES
from medlt.review.answers import QUESTIONS, AnswerFile, reader_file
from medlt.review.server import Reading, ReviewServer

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
TEXT = ImageFont.load_default(15)
MARGIN, HEAD = 140, 26
"""Pixels left of the strips, and above them, for their names."""
READ = 320
"""Side of the images on the review page, px."""


def stages(run: Path) -> None:
    """Draw demo.png: the first kept image of each finding with the stages of its fusion, rows and columns named."""
    panels = pd.read_parquet(run / "panels.parquet")
    chosen = panels[panels["kept"]].groupby("finding").head(1)
    strips = [Image.open(run / file).convert("RGB") for file in chosen["file"]]
    width, height = strips[0].size
    whole = Image.new("RGB", (MARGIN + width, HEAD + len(strips) * (height + GAP)), "white")
    draw = ImageDraw.Draw(whole)
    for column, name in enumerate(NAMES):
        draw.text((MARGIN + column * (height + GAP) + height // 2, HEAD // 2), name, "black", TEXT, "mm")
    for row, (finding, strip) in enumerate(zip(chosen["finding"], strips, strict=True)):
        top = HEAD + row * (height + GAP)
        draw.text((MARGIN - 8, top + height // 2), finding, "black", TEXT, "rm")
        whole.paste(strip, (MARGIN, top))
    whole.save(IMAGES / "demo.png", optimize=True)


def picture(page: Page, name: str) -> None:
    """Write what the page shows, in 128 colours."""
    page.wait_for_timeout(300)
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shown.quantize(128, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


def report(run: Path, browser: Browser) -> None:
    """Take the first screen of the demo's report, and its viewer with the tail image beside the refined one."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((run / "report.html").absolute().as_uri())
    picture(page, "report_gallery")
    panels = pd.read_parquet(run / "panels.parquet")
    uid = panels.index[panels["kept"] & (panels["finding"] == "Pneumothorax")][0]
    page.locator(f".card[data-uid={uid}] button.open").click()
    page.select_option("[data-part=before]", "head parent")
    page.locator("[data-part=wipe]").fill("50")
    picture(page, "report_viewer")
    page.close()


def phantom(folder: Path) -> Reading:
    """Return a reading of phantom images, one for each of six findings."""
    manifest = medlt.Collection.from_phantom(folder / "phantom", 30, seed=5, size=READ, imbalance=4).manifest
    findings = ["Mass", "Pneumothorax", "Effusion", "Nodule", "Cardiomegaly", "Consolidation"]
    rows: pd.DataFrame = manifest.rows[manifest.rows["view"] == "PA"]
    uids = list(dict.fromkeys(rows.index[rows[finding] == 1][0] for finding in findings))
    answers = AnswerFile.open(reader_file(folder, "anna"))
    return Reading(uids, findings[: len(uids)], images(manifest, READ, uids), answers, 0, tuple(QUESTIONS))


def review(browser: Browser) -> None:
    """Take the review page with two answers of its second image, and its panel of keys."""
    with tempfile.TemporaryDirectory() as folder:
        server = ReviewServer(phantom(Path(folder)))
        threading.Thread(target=server.serve, daemon=True).start()
        page = browser.new_page(viewport={"width": 1100, "height": 740})
        page.goto(server.address)
        page.locator("legend").first.wait_for()
        page.keyboard.type("rpn")
        page.keyboard.press("Enter")
        page.keyboard.type("sp")
        page.evaluate("document.querySelector('#frame img').decode()")
        picture(page, "review_page")
        page.keyboard.press("?")
        picture(page, "review_keys")
        page.close()
        server.stop()


def main() -> None:
    """Write every picture."""
    read = argparse.ArgumentParser()
    read.add_argument("run", type=Path, help="the folder of `medlt demo`")
    run, own = read.parse_args().run, ROOT / ".chromium" / "chromium"
    program = os.environ.get("MEDLT_BROWSER") or shutil.which("chromium") or (str(own) if own.is_file() else None)
    stages(run)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        report(run, browser)
        review(browser)
        browser.close()


if __name__ == "__main__":
    main()
