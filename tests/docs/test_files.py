"""The page on files lists what a run writes, and nothing that no code writes."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "files.md"


def section(title: str) -> str:
    """The page between a heading and the next one."""
    return re.split(r"^## ", PAGE.read_text(), flags=re.M)[[*titles()].index(title) + 1]


def titles() -> list[str]:
    return re.findall(r"^## (.*)$", PAGE.read_text(), re.M)


def listed(table: str) -> set[str]:
    """The names in the first column of all tables of a text."""
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_file_of_a_run_is_listed_and_the_usual_ones_are_there(augmented: Path) -> None:
    usual, sometimes = section("A run folder").split("These files are there if")
    names = {f"{path.name}/" if path.is_dir() else path.name for path in augmented.iterdir()}
    assert {name for name in names if not name.startswith(".")} <= listed(usual) | listed(sometimes)
    assert listed(usual) <= names


def test_the_keys_of_run_json_are_there(augmented: Path) -> None:
    (row,) = re.findall(r"^\| `run.json` \| (.*) \|$", PAGE.read_text(), re.M)
    assert set(re.findall(r"`(\w+)`", row)) <= set(json.loads((augmented / "run.json").read_text()))


@pytest.mark.parametrize("title", titles())
def test_every_listed_file_has_code_that_writes_it(title: str) -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "medlt").rglob("*.py"))
    names = listed(section(title))
    assert len(names) > 5
    stems = {name: Path(name).stem.strip(".") for name in names}
    assert [name for name, stem in stems.items() if not re.search(rf"\b{re.escape(stem)}\b", source)] == []
