"""A contact sheet of converted images, preview.html: one file that needs neither network nor script.

It holds thumbnails, uids, views, sizes and notes; no identifier of a patient and no path.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from medlt.data.convert.encode import jpeg
from medlt.data.convert.places import Places
from medlt.data.convert.plausibility import DOUBTS
from medlt.data.images import read_image
from medlt.files import write_text

MOST = 200  # thumbnails of 3 to 8 KB
LEAST = 40
"""The room that is kept for each later group, however many images an earlier one has."""
_SIDE = 160
_HINTS = {
    "Implausible": "Nearly black, white or flat, or far from the stored grey levels. See each of them before use.",
    "Noted": "Repaired, turned, or unusual, as the note says.",
    "Without notes": "A sample of all other images.",
}


@dataclass(frozen=True)
class Thumbnail:
    """An image on the sheet: `picture` is a JPEG in base64, `size` its columns x rows."""

    uid: str
    view: str
    size: str
    notes: str
    picture: str


@dataclass(frozen=True)
class ThumbnailGroup:
    """Some of the `total` images of one kind."""

    title: str
    hint: str
    total: int
    thumbnails: list[Thumbnail]


def write_preview(places: Places) -> None:
    """Write preview.html into OUT, for the images of its manifest; equal images give an equal sheet."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    rows = pd.read_parquet(places.release / "manifest.parquet").sort_index()
    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    groups = [
        ThumbnailGroup(title, _HINTS[title], total, [_film(places.release, row) for _, row in some.iterrows()])
        for title, total, some in grouped(rows.reset_index())
    ]
    text = pages.get_template("preview.html.j2").render(total=len(rows), groups=groups)
    write_text(places.out / "preview.html", text)


def grouped(rows: pd.DataFrame) -> list[tuple[str, int, pd.DataFrame]]:
    """Return (title, number of images, those to show) of each group that has any: first those with doubts.

    Of a group, the first by uid are shown. A uid is a hash, so they are a sample without order.
    """
    doubtful = rows["notes"].map(lambda notes: not set(DOUBTS).isdisjoint(notes.split("; "))).astype(bool)
    noted = (rows["notes"] != "") & ~doubtful
    groups = dict(zip(_HINTS, (rows[doubtful], rows[noted], rows[~doubtful & ~noted]), strict=True))
    shown, room = [], MOST
    for later, (title, group) in zip((2, 1, 0), groups.items(), strict=True):
        some = group.head(room - later * LEAST)
        room -= len(some)
        if len(group):
            shown.append((title, len(group), some))
    return shown


def _film(folder: Path, row: pd.Series) -> Thumbnail:
    size = f"{row['out_columns']} x {row['out_rows']}"
    return Thumbnail(row["uid"], row["view"], size, row["notes"], _picture(folder / row["path"]))


def _picture(path: Path) -> str:
    """Return the image with a long side of 160 pixels or less, as a JPEG in base64."""
    pixels = read_image(path)
    scale = min(1.0, _SIDE / max(pixels.shape))
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return base64.b64encode(jpeg(np.rint(small * 255).astype(np.uint8), 75)).decode()
