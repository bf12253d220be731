"""Text of any origin in the cards and pages of a run stays text, by the parser of CommonMark and GitHub's tables."""

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from medlt.files import write_json
from medlt.markdown_text import cell, inline
from medlt.privacy.card import datasheet, model_card
from medlt.report.scorecard import Measure, markdown

HOSTILE = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![x](http://192.0.2.1/pixel.png)",
    "\\[x](javascript:alert(1))",
    "[x]\\(javascript:alert(1))",
    "\n[x]: javascript:alert(1)\n\n[x]",
    "<javascript:alert(1)>",
    "a | b | c",
    "a \\| b",
    "`<b>` | `",
    "x\n---\nlicense: mit\n---\n# title",
    "&lt;script&gt;",
]
NEAR = st.text("<>[]()!\\|`*_:#-\n &;ajx", max_size=24)


class Tags(HTMLParser):
    """The tags of a page, and where they lead."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert all(
            name in ("href", "src", "style") and not str(value).startswith("javascript") for name, value in attrs
        )


def tags(text: str) -> list[str]:
    return Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(text)).tags


def assert_harmless(page: str) -> None:
    assert not {"script", "a", "img", "b", "javascript:alert(1)"} & set(tags(page))


@pytest.mark.parametrize("text", HOSTILE)
def test_it_is_text_in_a_line_and_in_a_cell(text: str) -> None:
    assert_harmless(f"A line of {inline(text)}.\n\n- {inline(text)}\n- [x]\n")
    assert "\n" not in inline(text)
    rows = tags(f"| a | b |\n|---|---|\n| {cell(text)} | 2 |\n")
    assert rows.count("td") == 2
    assert_harmless(f"| a | b |\n|---|---|\n| {cell(text)} | 2 |\n")


@given(NEAR)
def test_no_text_makes_a_link_a_tag_or_a_cell(text: str) -> None:
    assert_harmless(f"x {inline(text)} x\n\n- x {inline(text)}\n")
    plain = cell(text)
    if "`" not in plain:  # a bar in code is a bar of the table in some parsers, and none in others
        assert tags(f"| a | b |\n|---|---|\n| x{plain}x | 2 |\n").count("td") == 2


def test_what_medlt_writes_itself_stays_as_it_is() -> None:
    for text in (
        "AP 0.12 [0.03, 0.21]",
        "`medlt audit RUN` measures them",
        "**near_copies** (passed)",
        "No_Finding",
        "50 %",
    ):
        assert inline(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_cards_hold_hostile_names_and_sentences_as_text(text: str, cards: SimpleNamespace, tmp_path: Path) -> None:
    folder = re.sub(r"\s+", " ", text).replace("/", "")[:60]
    run = cards.finished(tmp_path / folder, privacy=None)
    said = {"name": text, "passed": True, "sentence": text, "figures": {}}
    write_json(run / "audit.json", {"results": [said], "conclusion": text})
    write_json(run / "verdict.json", {"verdict": text, "sentence": text})
    for page in (model_card(run), datasheet(run)):
        _, header, body = page.split("---\n", 2)
        assert yaml.safe_load(header)["license"] == "other"
        assert_harmless(body)
    assert_harmless(markdown([Measure("coverage", text, text, text), Measure("quality", text, missing=text)]))


@pytest.mark.parametrize("text", [one for one in HOSTILE if "\n" not in one])
def test_a_hostile_finding_is_text_in_the_datasheet(text: str, cards: SimpleNamespace, tmp_path: Path) -> None:
    run = cards.finished(tmp_path / "run", privacy=None)
    rows = pd.read_parquet(run / "manifest.parquet")
    rows["finding"] = rows["finding"].where(rows["finding"].isna(), text)
    rows.to_parquet(run / "manifest.parquet")
    sheet = datasheet(run)
    assert_harmless(sheet.split("---\n", 2)[2])
    assert f"| {cell(text)} | " in sheet
