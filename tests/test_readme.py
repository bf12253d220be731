"""What the README promises is there."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from medlt.config import catalogue

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py, which writes pages from the code."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_python_example_is_ten_lines_of_the_public_interface() -> None:
    """tests/docs/test_blocks.py runs it."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in example.splitlines() if line]) <= 10
    assert re.findall(r"^(?:import|from) .*", example, re.M) == ["import medlt"]


def test_the_parts_are_in_order() -> None:
    assert re.findall(r"^## (.*)$", README, re.M) == [
        "What you get",
        "Two commands",
        "From your DICOM files to a report",
        "Ten lines of Python",
        "Commands",
        "What was measured",
        "Limits",
        "Methods and citation",
    ]


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_every_link_of_a_page_beside_the_docs_leads_somewhere(page: Path) -> None:
    """MkDocs checks the links inside docs/."""
    broken = []
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", page.read_text()):
        target = ROOT / link if link else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor and target.is_file() else []
        if not target.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(f"{link}#{anchor}")
    assert broken == []


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_targets_of_the_makefile(command: str) -> None:
    assert command in README
    assert re.search(rf"^{command.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.M)


def test_every_config_that_a_page_names_ships() -> None:
    """Decisions tell what was, so they may name what is no more."""
    pages = [page for page in PAGES if page.parent.name != "decisions"]
    collections = "|".join({name.split("/")[0] for name in catalogue.names()})
    named = {
        name
        for page in pages
        for name in re.findall(rf"(?:medlt [a-z ]+|`)((?:{collections})/\w+)(?![\w./])", page.read_text())
    }
    assert len(named) > 8
    assert named <= set(catalogue.names())
    assert [page.name for page in pages if re.search(r"pipelines/\w+\.yaml|from pipelines", page.read_text())] == []


def test_the_table_of_commands_is_that_of_the_code(hooks: ModuleType) -> None:
    assert hooks.readme() == README, "run `python docs/hooks.py`"
    named = set(re.findall(r"^\| `medlt ([\w ]+)`", README, re.M))
    assert {"demo", "run", "augment", "evaluate", "audit", "config list"} <= named
