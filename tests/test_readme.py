"""What the README promises runs."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.config import catalogue

ROOT = Path(__file__).parents[1]


def test_the_python_example_runs_and_is_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len([line for line in example.splitlines() if line]) <= 10
    exec(compile(example, "README.md", "exec"), {})
    assert "rare:" in capsys.readouterr().out


def test_every_file_the_readme_points_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_targets_of_the_makefile(command: str) -> None:
    assert command in (ROOT / "README.md").read_text()
    assert re.search(rf"^{command.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.M)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]


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


def test_every_command_of_the_readme_is_one() -> None:
    commands = set(re.findall(r"^\| `medlt (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert {"demo", "run", "augment", "evaluate", "config"} <= commands
    for command in sorted(commands):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
