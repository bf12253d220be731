"""The manual as it is built: pages written from the code hold everything, and nothing is loaded from a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import medlt
from medlt.config import schema

ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:)?//|<link\b(?![^>]*rel=\"?canonical)[^>]*https?://"
)
"""What a browser would fetch when it opens a page; links are not."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built manual."""
    out = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def text_of(page: Path) -> str:
    """The text of a built page, without its tags."""
    return re.sub(r"<[^>]+>", "", page.read_text())


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    assert [page.name for page in pages if LOADED.search(page.read_text())] == []
    styles = [path for path in site.rglob("*.css") if "url(http" in path.read_text() or "@import" in path.read_text()]
    assert styles == []


def test_what_is_loaded_from_a_network_is_seen() -> None:
    assert LOADED.search('<script src="https://unpkg.com/x"></script>')
    assert LOADED.search('<link rel="stylesheet" href="https://fonts.googleapis.com/x">')
    assert not LOADED.search('<a href="https://arxiv.org/abs/1">paper</a><script src="../assets/x.js"></script>')


def test_the_search_works_from_the_disk(site: Path) -> None:
    """The index is a script, since a browser does not fetch JSON from file://, and the shim for workers is a copy."""
    assert (site / "search" / "search_index.js").stat().st_size > 100_000
    assert (site / "assets" / "iframe-worker.js").is_file()
    assert "assets/iframe-worker.js" in (site / "index.html").read_text()


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in nav] == []


def test_every_setting_is_described(site: Path) -> None:
    page = (site / "reference" / "settings.html").read_text()
    for kind in ("run", "verdict"):
        tree = schema(kind)
        sections = {kind: tree, **{name: one for name, one in tree["$defs"].items() if "properties" in one}}
        for name, section in sections.items():
            for key, value in section["properties"].items():
                assert f"<code>{key}</code>" in page, f"{name}.{key}"
                described = value.get("description") or "$ref" in value or "const" in value
                assert described, f"{name}.{key} has no description"


def test_every_command_and_option_is_on_the_page(site: Path) -> None:
    from typer.main import get_group

    from medlt.cli import app

    page = text_of(site / "reference" / "cli.html")
    for name, command in get_group(app).commands.items():
        assert f"medlt {name}" in page
        for one in getattr(command, "params", ()):
            assert all(option in page for option in one.opts if option.startswith("--"))


def test_every_public_name_is_on_the_page_with_its_docstring(site: Path) -> None:
    page = " ".join(text_of(site / "reference" / "api.html").split())
    assert len(medlt.__all__) > 10
    for name in medlt.__all__:
        if name.startswith("_"):
            continue
        assert name in page, name
        first = (getattr(medlt, name).__doc__ or "").split("\n")[0].split("`")[0].strip()
        assert not first or first.replace("<", "&lt;").replace(">", "&gt;") in page, f"{name}: {first}"


def test_the_configuration_names_no_address() -> None:
    assert "http" not in yaml.dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text()).get("extra"))
