"""One word a thing: words that mean something else to a radiologist, or nothing to a reader, stay out.

Identifiers are those that our code defines; texts are docstrings, messages and comments, pages, templates and configs.
"""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medlt"
ROOMS = sorted(
    path for path in PACKAGE.iterdir() if (path.is_dir() and path.name != "__pycache__") or path.suffix == ".py"
)

IDENTIFIERS = frozenset(
    "told said asked found looked looks gaze lesson lessons judge judges judged judging reporter reporters reporting "
    "screening course courses dose doses dosed blind subject speak spoken sighted lent foreseen apart chance asserted "
    "health predictor earlier duplicated".split()
)
"""Parts of identifiers, split at underscores and capitals."""
TEXT = re.compile(
    r"\b(told|said|asked|found|looked|gaze|lesson|judges?|judged|reporters?|screening|courses?|doses?|dosed|blind|"
    r"subjects?|foreseen|sighted|crossfit|the door|who was there)\b",
    re.IGNORECASE,
)
"""Words of docs, help, messages and comments."""


def parts(name: str) -> set[str]:
    """The words of an identifier."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def defined(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that this source defines, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, 0


def texts(source: str) -> Iterator[tuple[str, int]]:
    """Every string and comment of a Python source, with its line."""
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type in kinds:
            for number, line in enumerate(token.string.splitlines()):
                yield line, token.start[0] + number


def sources(room: Path, suffix: str) -> list[Path]:
    """Files of a room."""
    return sorted(room.rglob(f"*{suffix}")) if room.is_dir() else [room] if room.suffix == suffix else []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.stem)
def test_identifiers_are_the_fields_own(room: Path) -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sources(room, ".py")
        for name, line in defined(ast.parse(path.read_text()))
        if parts(name) & IDENTIFIERS
    ]
    assert bad == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.stem)
def test_messages_and_docstrings_are_plain(room: Path) -> None:
    lines = [(path, text, line) for path in sources(room, ".py") for text, line in texts(path.read_text())]
    for path in sources(room, ".j2"):
        lines += [(path, text, number + 1) for number, text in enumerate(path.read_text().splitlines())]
    assert [f"{path.relative_to(ROOT)}:{line} {text.strip()}" for path, text, line in lines if TEXT.search(text)] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "pipelines").rglob("*.yaml"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_and_configs_are_plain(page: Path) -> None:
    bad = [line for line in page.read_text().splitlines() if TEXT.search(line)]
    assert bad == []


def test_the_words_are_seen() -> None:
    tree = ast.parse("def told(x): pass\nclass JudgeOfCourses: ...\nself.said = 1\nfor found in []: pass\n")
    assert [name for name, _ in defined(tree) if parts(name) & IDENTIFIERS] == [
        "told",
        "JudgeOfCourses",
        "found",
        "said",
    ]
    assert TEXT.search("what a judge does not see")
    assert not TEXT.search("judgement of a foundation")
