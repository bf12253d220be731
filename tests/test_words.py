"""One word a thing: words that mean something else to a radiologist, or nothing to a reader, stay out.

Identifiers are those that our code defines, and names of modules. Texts are docstrings, messages and comments, pages,
templates, notebooks and configs. ALLOWED holds the exceptions, word by word.
"""

import ast
import io
import json
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from medlt.config import schema

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medlt"
ENTRIES = sorted(
    path for path in PACKAGE.iterdir() if (path.is_dir() and path.name != "__pycache__") or path.suffix == ".py"
)
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
    *sorted((ROOT / "pipelines").rglob("*.yaml")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]

PARTS = frozenset(
    "told said say asked ask found looked looks look gaze gazes lesson lessons judge judges judged judging reporter "
    "reporters reporting screening course courses dose doses dosed blind subject subjects speak spoken sighted lent "
    "foreseen apart chance asserted health predictor predictors earlier duplicated crossfit heavy".split()
)
"""Forbidden in every identifier; a part ends at an underscore or a capital."""
NAMES = frozenset(["aid"])
"""Forbidden as a whole identifier."""
CLASSES = frozenset(
    "Told Asked Found Shown Known Against Gaze Lesson Draws Asserted Book How Place Placed Subject Study Finding "
    "Crossfit".split()
)
"""Forbidden as the name of a class."""
FUNCTIONS = frozenset(
    "look speak held apart lent dosed duplicated sighted foreseen own put way larger further shown looked_up".split()
)
"""Forbidden as the name of a function or method."""
MODULES = frozenset("apart aid through overlap lessons gaze judges predictor course dose courses health".split())
"""Forbidden as the name of a module or of a package."""
WORDS = re.compile(
    r"\b(told|tells?|telling|said|asked|ask(?:s|ing)?|found|looked|gaze|lessons?|judges?|judged|judging|"
    r"reporters?|screening|screened|courses?|doses?|dosed|blind|blinded|subjects?|foreseen|sighted|lent|crossfit|predictors?|"
    r"the door|who was there)\b",
    re.IGNORECASE,
)
"""Words of docs, help, messages and comments."""
OLD = re.compile(
    r"\b(?:findings|health|differences|filtering|rejects)\.parquet|(?<!near_)\bcopies\.parquet|\bearlier/|"
    r"--shadows\b|--false-positive\b|\bparent_[ab]\b|\bneed\.(?:target|times|most|candidates|refills)\b|"
    r"\bprivacy\.(?:clip|physical|secure|way|unit|images_per_patient|multiplicity)\b|"
    r"\bevaluation\.(?:mix|weight|draws|chosen|best|duplicate)\b|\bdata\.keep\b|"
    r"\bchecks\.(?:black_below|duplicate_above|quantile)\b|\bfinding_b\b|\bq_[ab]\b"
)
"""Files, columns, options and keys that have another name now."""
BARE = frozenset("fit table write load".split())
"""Names too short to be those of several public functions."""
KEYS = frozenset(
    "recipe out learnt need target times candidates refills guides keep strengths boost skip batch ema "
    "accumulate checkpointing drop_condition min_snr start clip physical secure way unit images_per_patient "
    "schedule multiplicity mix draws chosen best duplicate black_below duplicate_above anchor shifts dose course blind "
    "judges".split()
)
"""Keys that no config has."""

STREAM = "a key of a random stream: results depend on it"
ALLOWED: dict[tuple[str, str], str] = {
    ("medlt/evaluation/labelling.py", '"reporter"'): STREAM,
    ("medlt/recipes/_models.py", '"judge"'): STREAM,
    ("medlt/recipes/_models.py", '"predictor"'): STREAM,
}
"""Exact texts of a file that hold a forbidden word, each with its reason."""


def parts(name: str) -> set[str]:
    """The words of an identifier."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def defined(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that this source defines, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name, node.lineno
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield name, node.lineno


def bad_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every definition with a forbidden name, with its line."""
    yield from ((name, line) for name, line in defined(tree) if parts(name) & PARTS or name in NAMES)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.lstrip("_") in CLASSES:
            yield node.name, node.lineno
        if isinstance(node, ast.FunctionDef) and node.name.lstrip("_") in FUNCTIONS:
            yield node.name, node.lineno


def texts(source: str) -> Iterator[tuple[str, int]]:
    """Every string and comment of a Python source, with its line."""
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            for number, line in enumerate(token.string.splitlines()):
                yield line, token.start[0] + number


def lines_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every text of a file, with its line: of a notebook its sources, of Python its strings and comments."""
    content = path.read_text()
    if path.suffix == ".py":
        yield from texts(content)
    elif path.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(content)["cells"]):
            yield from ((line, number) for line in "".join(cell["source"]).splitlines())
    else:
        yield from ((line, number + 1) for number, line in enumerate(content.splitlines()))


def without_allowed(path: Path, line: str) -> str:
    """The line without the exceptions of its file."""
    for where, text in ALLOWED:
        if where == path.relative_to(ROOT).as_posix():
            line = line.replace(text, "")
    return line


def refuse(bad: list[str]) -> None:
    """Fail with all of these lines, whole."""
    if bad:
        pytest.fail("\n".join(["forbidden words:", *bad]), pytrace=False)


def bad_lines(path: Path) -> list[str]:
    """Every line of a file with a forbidden word."""
    return [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for line, number in lines_of(path)
        if WORDS.search(shown := without_allowed(path, line)) or OLD.search(shown)
    ]


def sources(entry: Path, *suffixes: str) -> list[Path]:
    """Files of a package, or one module."""
    files = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
    return [path for path in files if path.suffix in suffixes]


def keys_of(tree: Any) -> Iterator[str]:
    """Every key of nested dicts and lists. The columns of a label table are the user's own."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield str(key)
            yield from keys_of(value) if key not in ("column", "columns", "findings") else ()
    elif isinstance(tree, list):
        for item in tree:
            yield from keys_of(item)


def properties(tree: Any) -> Iterator[str]:
    """Every key that a JSON schema lets a config have."""
    if isinstance(tree, dict):
        yield from tree.get("properties", {})
        for value in tree.values():
            yield from properties(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from properties(item)


def blocks(page: Path) -> Iterator[str]:
    """The YAML of a page: a config whole, of Markdown each YAML block."""
    if page.suffix == ".yaml":
        yield page.read_text()
    elif page.suffix == ".md":
        yield from re.findall(r"^```yaml.*?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.stem)
def test_identifiers_are_the_fields_own(entry: Path) -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sources(entry, ".py")
        for name, line in bad_names(ast.parse(path.read_text()))
    ]
    names = [path.relative_to(ROOT) for path in [entry, *sources(entry, ".py", ".j2")]]
    bad += [str(name) for name in names if (name.stem.split(".")[0] in MODULES) or parts(name.stem) & PARTS]
    refuse(bad)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.stem)
def test_messages_and_docstrings_are_plain(entry: Path) -> None:
    refuse([line for path in sources(entry, ".py", ".j2") for line in bad_lines(path)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_and_configs_are_plain(page: Path) -> None:
    keys = [key for block in blocks(page) for key in keys_of(yaml.safe_load(block)) if key in KEYS]
    refuse([*bad_lines(page), *(f"{page.relative_to(ROOT)}: the key {key}" for key in keys)])


def test_no_config_has_an_old_key() -> None:
    assert sorted(set(properties(schema())) & KEYS) == []


def test_the_exceptions_are_needed() -> None:
    texts_of = {where: (ROOT / where).read_text() for where, _ in ALLOWED}
    assert [(where, text) for where, text in ALLOWED if text not in texts_of[where]] == []
    assert [text for _, text in ALLOWED if not (WORDS.search(text) or OLD.search(text))] == []


def repeated(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The names, of pairs (name, place), that have several places."""
    places = defaultdict(list)
    for name, place in names:
        places[name].append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_a_class_name_means_one_thing() -> None:
    nodes = [(path, node) for path in sources(PACKAGE, ".py") for node in ast.walk(ast.parse(path.read_text()))]
    classes = [(node.name, f"{path}:{node.lineno}") for path, node in nodes if isinstance(node, ast.ClassDef)]
    assert len(classes) > 100
    assert repeated(classes) == {}


def test_a_bare_verb_is_the_name_of_one_public_function() -> None:
    nodes = [(path, node) for path in sources(PACKAGE, ".py") for node in ast.parse(path.read_text()).body]
    functions = [(node.name, f"{path}:{node.lineno}") for path, node in nodes if isinstance(node, ast.FunctionDef)]
    assert repeated((name, place) for name, place in functions if name in BARE) == {}
    assert repeated([("fit", "a:1"), ("load", "a:2"), ("fit", "b:1")]) == {"fit": ["a:1", "b:1"]}


def test_the_words_are_seen() -> None:
    tree = ast.parse(
        "def told(x): pass\nclass JudgeOfCourses: ...\nself.said = 1\nfor found in []: pass\n"
        "class Place: ...\ndef look(): ...\ntry: ...\nexcept OSError as asked: ...\nplace = look = book = 1"
    )
    assert {name for name, _ in bad_names(tree)} == {
        "told", "JudgeOfCourses", "said", "found", "Place", "look", "asked",
    }  # fmt: skip
    assert {name for name, _ in defined(tree)} >= {"place", "book", "x"}
    assert WORDS.search("what a judge does not see")
    assert not WORDS.search("judgement of a foundation")
    for text in ("in findings.parquet", "see copies.parquet", "`earlier/`", "--shadows 8", "privacy.clip", "under q_a"):
        assert OLD.search(text), text
    for text in ("near_copies.parquet", "checks.parquet", "--shadow-models 8", "privacy.max_grad_norm"):
        assert not OLD.search(text), text
    assert list(texts('x = f"""a\n{told}"""  # b\n'))[-1] == ("# b", 2)
    assert set(keys_of(yaml.safe_load("a: [{b: {c: 1}}]\ncolumns: {subject: x}"))) == {"a", "b", "c", "columns"}
    assert set(blocks(ROOT / "pipelines" / "demo" / "demo.yaml")) == {(ROOT / "pipelines/demo/demo.yaml").read_text()}
