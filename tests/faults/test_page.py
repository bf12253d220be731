"""The page on faults shows what `make faults` saw last, and nothing that may not be."""

import json
from pathlib import Path


def test_the_page_is_that_of_the_outcomes(page: tuple[str, str]) -> None:
    there, wanted = page
    assert there == wanted, "call `make faults WRITE=1`"


def test_every_outcome_is_the_same_bytes_or_one_line() -> None:
    outcomes = json.loads(Path(__file__).with_name("outcomes.json").read_text())
    said = {text for files in outcomes.values() for cells in files.values() for text in cells.values()}
    assert "same bytes" in said
    assert [text for text in said if text != "same bytes" and not text.startswith(("1: ", "2: "))] == []
