"""Writes the pictures of docs/images that show the demo: its images stage by stage, and pages of its report.

    medlt demo --out demo && python docs/pictures.py demo

The screenshots need Playwright and Chromium, as `make browser` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from medlt.report.panels import GAP, NAMES

IMAGES = Path(__file__).parent / "images"
TEXT = ImageFont.load_default(15)
MARGIN, HEAD = 140, 26
"""Pixels left of the rows, and above them, for their names."""


def stages(run: Path, out: Path) -> None:
    """Write the first kept image of each tail finding with all stages of its fusion, rows and columns named."""
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
    whole.save(out, optimize=True)


def main() -> None:
    """Write every picture."""
    read = argparse.ArgumentParser()
    read.add_argument("run", type=Path)
    run = read.parse_args().run
    stages(run, IMAGES / "demo.png")


if __name__ == "__main__":
    main()
