"""A notebook shows the top of the page, in a frame that runs no script."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medlt.report.notebook import VerdictView
from medlt.types import InputError


class Frames(HTMLParser):
    """Elements outside of frames."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_the_cell_holds_one_sandboxed_frame_with_verdict_forest_and_table(experiment: Path) -> None:
    (frame,) = Frames(VerdictView(experiment)._repr_html_()).elements
    assert frame[0] == "iframe"
    assert frame[1]["sandbox"] is None  # no permission at all
    page = str(frame[1]["srcdoc"])
    for section in ("verdict", "comparisons", "arms"):
        assert f'<section id="{section}"' in page
    assert '<section id="power"' not in page
    assert "fusion one" in page


def test_as_text_it_is_the_word_and_the_sentence(experiment: Path) -> None:
    told = json.loads((experiment / "verdict.json").read_text())
    assert repr(VerdictView(str(experiment))) == f"{told['verdict']}. {told['sentence']}"


def test_another_folder_is_refused(evaluated: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no experiment"):
        VerdictView(evaluated)
