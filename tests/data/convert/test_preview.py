"""The contact sheet: what needs a person's eyes first, and no identifier of a patient in it."""

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlt.data.convert.plausibility import BLACK, WHITE
from medlt.data.convert.preview import LEAST, MOST, grouped

Film, Run = Callable[..., bytes], Callable[..., Any]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}


@pytest.fixture
def source(film: Film, tmp_path: Path) -> Path:
    """Two plain films, one whose window makes it white, one with a note, and one whose view is markup."""
    place = tmp_path / "in" / "DOE^JANE"
    place.mkdir(parents=True)
    names = {"PatientName": "Doe^Jane", "PatientID": "MRN-4711", "AccessionNumber": "ACC-99"}
    for name, tags in {
        "plain": {},
        "lateral": {"ViewPosition": "LL"},
        "white": {"WindowCenter": -5000, "WindowWidth": 10},
        "oblong": {"PixelSpacing": [0.1, 0.2]},
        "markup": {"ViewPosition": "<b>&"},
    }.items():
        pixels = np.roll(RAMP, len(name))[:, :48].copy()
        uids = {"StudyInstanceUID": "1.2.840.1", "SOPInstanceUID": f"1.2.840.1.{len(name)}"}
        (place / name).write_bytes(film(pixels, **{**FULL, **names, **uids, **tags}))
    return tmp_path / "in"


def sections(page: str) -> dict[str, str]:
    """{title: HTML} of the groups, in their order."""
    return dict(re.findall(r"<section>\s*<h2>(.*?): \d+</h2>(.*?)</section>", page, re.DOTALL))


def test_the_sheet_shows_the_doubtful_first(source: Path, run: Run, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", preview=True)
    page = (tmp_path / "out/preview.html").read_text()
    groups = sections(page)
    assert list(groups) == ["Implausible", "Noted", "Without notes"]
    uids = {title: set(re.findall(r"<code>(\w+)</code>", group)) for title, group in groups.items()}
    by_name = {name.rpartition("/")[2]: row["uid"] for name, row in result.rows.items()}
    assert uids == {
        "Implausible": {by_name["white"]},
        "Noted": {by_name["oblong"]},
        "Without notes": {by_name[name] for name in ("plain", "lateral", "markup")},
    }
    assert WHITE in groups["Implausible"]
    assert "LL, 48 x 64" in page
    assert "&lt;b&gt;&amp;" in page


def test_a_thumbnail_is_the_image(source: Path, run: Run, tmp_path: Path) -> None:
    """A film below 160 px keeps its size, so that its thumbnail differs by the loss of JPEG alone."""
    result = run(source, tmp_path / "out", preview=True)
    page = (tmp_path / "out/preview.html").read_text()
    films = re.findall(r"base64,([^\"]+)\" alt=\"thumbnail of (\w+)\"", page)
    assert len(films) == 5
    shown = {uid: np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text, uid in films}
    for row in result.rows.values():
        with Image.open(tmp_path / "out" / row["path"]) as image:
            image = np.asarray(image).astype(float)
        assert shown[row["uid"]].shape == image.shape
        assert np.abs(shown[row["uid"]] - image).mean() < 4


@pytest.mark.parametrize("settings", [{"format": "nifti"}, {"preset": "linear16", "format": "png16"}, {"size": 32}])
def test_every_format_has_thumbnails(source: Path, run: Run, tmp_path: Path, settings: dict[str, Any]) -> None:
    run(source, tmp_path / "out", preview=True, **settings)
    pictures = re.findall(r"base64,([^\"]+)\"", (tmp_path / "out/preview.html").read_text())
    assert len(pictures) == 5
    assert all(np.ptp(np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))) > 100 for text in pictures[1:])


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]


def test_the_sheet_names_no_patient_and_needs_nothing_else(source: Path, run: Run, tmp_path: Path) -> None:
    run(source, tmp_path / "out", preview=True)
    page = (tmp_path / "out/preview.html").read_text()
    for text in ("doe", "mrn-4711", "acc-99", "1.2.840", "images/", str(tmp_path)):
        assert text.lower() not in page.lower()
    parser = _Parser()
    parser.feed(page)
    assert not parser.tags & {"script", "link", "iframe", "b"}
    assert all(link.startswith("data:image/jpeg;base64,") for link in parser.links)
    assert "default-src 'none'" in page


def test_the_sheet_is_bounded_and_always_the_same(source: Path, run: Run, tmp_path: Path) -> None:
    for workers in (1, 2):
        run(source, tmp_path / f"out{workers}", workers=workers, preview=True)
    first, second = ((tmp_path / f"out{workers}/preview.html").read_bytes() for workers in (1, 2))
    assert first == second
    run(source, tmp_path / "out3")
    assert not (tmp_path / "out3/preview.html").exists()


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((500, 500, 500), (MOST - 2 * LEAST, LEAST, LEAST)),
        ((10, 500, 500), (10, MOST - 10 - LEAST, LEAST)),
        ((3, 4, 5), (3, 4, 5)),
        ((0, 0, 500), (MOST,)),
        ((0, 0, 0), ()),
    ],
)
def test_every_group_has_room(counts: tuple[int, ...], shown: tuple[int, ...]) -> None:
    notes = [note for note, n in zip((f"a; {BLACK}", "turned", ""), counts, strict=True) for _ in range(n)]
    rows = pd.DataFrame({"notes": notes}, index=[f"{at:04}" for at in range(len(notes))]).astype({"notes": "str"})
    groups = grouped(rows)
    assert tuple(len(some) for _, _, some in groups) == shown
    assert tuple(total for _, total, _ in groups) == tuple(n for n in counts if n)
    assert all(list(some.index) == sorted(some.index) for _, _, some in groups)
