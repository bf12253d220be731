"""Every block of code on a page is run, validated or parsed, so that no page can go stale.

A comment before a block says what it is:

    <!-- block: run -->             Python that is run, page by page, in a folder with small fixtures (the default)
    <!-- block: check -->           Python that needs weights or data: names, arguments and keywords are checked
    <!-- block: config -->          YAML that is a whole config (the default)
    <!-- block: labels -->          YAML that is a whole label specification
    <!-- block: fragment of=NAME -->  YAML that replaces parts of the shipped config NAME (default nih14/fusion)

In all other blocks, the lines that begin with `medlt`, `make`, `pip` or `python` are checked.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from medlt.cli import app
from medlt.config import catalogue, load_config, load_settings, load_verdict, schema
from medlt.data.layouts.options import FolderOptions, file_model
from medlt.types import InputError

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.is_file()
]
USUAL = {"python": "run", "yaml": "config", "toml": "toml"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language and text, and what the comment before it says."""

    page: Path
    line: int
    language: str
    text: str
    kind: str
    of: str = "nih14/fusion"

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path, text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    mark, fence, start, held = "", "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if fence:
            if line.strip() == "```":
                kind, *options = mark.split() or [USUAL.get(fence, "console")]
                yield Block(page, start, fence, "\n".join(held) + "\n", kind, **dict(o.split("=", 1) for o in options))
                mark, fence, held = "", "", []
            else:
                held.append(line)
        elif opened := re.match(r"\s*```(\w*)\s*$", line):
            fence, start = opened[1] or "console", number + 1
        elif line.strip():
            comment = re.match(r"\s*<!-- block: (.*) -->$", line)
            mark = comment[1] if comment else ""


BLOCKS = [block for page in PAGES for block in blocks_of(page, page.read_text())]


def of_kind(*kinds: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind in kinds]


def test_every_block_has_a_kind_that_is_checked() -> None:
    kinds = {"python": {"run", "check"}, "yaml": {"config", "fragment", "labels"}, "toml": {"toml"}}
    kinds |= {language: {"console"} for language in ("console", "csv")}
    assert [str(one) for one in BLOCKS if one.kind not in kinds.get(one.language, ())] == []
    assert {one.kind for one in BLOCKS} >= {"run", "check", "config", "fragment", "console"}


# ---------------------------------------------------------------------------- YAML
def merged(old: Any, new: Any) -> Any:
    """Return a tree changed by another; a section of another kind replaces the old one."""
    if not (isinstance(old, dict) and isinstance(new, dict)) or new.get("kind", old.get("kind")) != old.get("kind"):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


@pytest.mark.parametrize("block", of_kind("config", "fragment"), ids=str)
def test_a_config_is_valid(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_config(block, tmp_path, monkeypatch)


@pytest.mark.parametrize("block", of_kind("labels"), ids=str)
def test_a_label_specification_is_valid(block: Block, tmp_path: Path) -> None:
    (tmp_path / "labels.yaml").write_text(block.text)
    assert load_settings(tmp_path / "labels.yaml", file_model(FolderOptions)).model_fields_set == set(
        yaml.safe_load(block.text)
    )


def check_config(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load a block as a config. Configs that its sources name are put beside it."""
    for variable in re.findall(r"\$\{(\w+)\}", block.text):
        monkeypatch.setenv(variable, "somewhere")
    tree = yaml.safe_load(block.text)
    if block.kind == "fragment":
        tree = merged(yaml.safe_load(catalogue.path(block.of).read_text()), tree)
    for source in tree.get("sources", {}).values():
        if "config" in source:
            place = tmp_path / source["config"]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(catalogue.path("nih14/fusion").read_text())
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    (load_verdict if "arms" in tree else load_config)(file)


@pytest.mark.parametrize("block", of_kind("toml"), ids=str)
def test_toml_can_be_read(block: Block) -> None:
    assert tomllib.loads(block.text)


# ---------------------------------------------------------------------------- console
GROUP = typer.main.get_group(app)
UsageError: Any = typer.BadParameter.__mro__[1]
"""Of the click that typer uses."""
PLACEHOLDER = re.compile(r"^\[.*\]$|^\.\.\.$")


def command_lines(text: str) -> Iterator[str]:
    """Yield the commands of a block: prompts, comments and redirections are left out, continued lines are joined."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        for one in line.removeprefix("$ ").split(" && "):
            yield re.sub(r"\s+(>|\|)\s.*$", "", re.sub(r"(^|\s)#\s.*$", "", one)).strip()


def words(line: str) -> list[str]:
    """Return a line's words without what stands for more of them, such as [OPTIONS]."""
    return [word for word in shlex.split(line) if not PLACEHOLDER.match(word)]


def find_command(arguments: list[str]) -> tuple[Any, list[str]]:
    """Return the command of these arguments and what follows its name. Raises UsageError for an unknown one."""
    command: Any = GROUP
    while arguments and hasattr(command, "commands"):
        if arguments[0].startswith("-"):
            break
        name, *arguments = arguments
        if name not in command.commands:
            raise UsageError(f"medlt has no command {name!r}")
        command = command.commands[name]
    return command, arguments


@cache
def keys() -> frozenset[str]:
    """Return every dotted key that a config of either kind may set; `*` stands for a name of the user's."""
    return frozenset(key for kind in ("run", "verdict") for key in below(schema(kind), schema(kind)["$defs"], ""))


def below(node: dict[str, Any], defs: dict[str, dict[str, Any]], prefix: str) -> Iterator[str]:
    """Yield the keys of the sections that a value of this schema may be."""
    if "$ref" in node:
        yield from below(defs[node["$ref"].rpartition("/")[2]], defs, prefix)
    for option in node.get("anyOf", ()):
        yield from below(option, defs, prefix)
    for name, value in node.get("properties", {}).items():
        yield f"{prefix}{name}"
        yield from below(value, defs, f"{prefix}{name}.")
    if isinstance(node.get("additionalProperties"), dict):
        yield f"{prefix}*"
        yield from below(node["additionalProperties"], defs, f"{prefix}*.")


def known_key(key: str) -> bool:
    """Return whether a run or an experiment has this key."""
    return any(re.fullmatch(re.escape(one).replace(r"\*", "[^.]+"), key) for one in keys())


def problem_of(line: str, copied: dict[str, str]) -> str:
    """Return what is wrong with a command, or "". `copied`: files that the page made from shipped configs."""
    try:
        command, rest = find_command(words(line)[1:])
        rest = [one for one in rest if one != "--help"]
        context = command.make_context(line, rest) if not hasattr(command, "commands") else None
    except UsageError as error:
        return error.format_message()
    except typer.Exit:
        return ""
    values = context.params if context else {}
    if command.name == "copy" and values:
        copied[Path(str(values["to"] or f"{values['name'].split('/')[1]}.yaml")).name] = values["name"]
    return config_problem(command.name or "", values, copied)


def config_problem(command: str, values: dict[str, Any], copied: dict[str, str]) -> str:
    """Return what is wrong with a config's name or its overrides, or ""."""
    name = values.get("name") if command == "copy" else values.get("config")
    if name is None:
        return ""
    overrides = values.get("overrides") or []
    unknown = [one for one in overrides if not known_key(one.partition("=")[0])]
    if unknown:
        return f"{unknown[0]}: no such key"
    name = copied.get(name, name)
    if re.fullmatch(r"\w+/\w+", name) and name not in catalogue.names():
        return f"{name}: no config that ships with medlt"
    if name not in catalogue.names():
        return ""
    try:
        if command == "evaluate":
            load_verdict(Path(name), overrides)
        elif command != "copy":
            load_config(Path(name), overrides, values.get("method"))
    except InputError as error:
        return str(error)
    return ""


def other_problem(line: str) -> str:
    """Return what is wrong with a command of another program: a make target, a script or an extra that is not there."""
    program, *arguments = words(line)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        return "".join(f"make has no target {one}" for one in arguments if "=" not in one and one not in targets)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [one for group in re.findall(r"medlt\[([\w,]+)\]|EXTRAS=([\w,]+)", line) for one in group if one]
    missing = [one for group in asked for one in group.split(",") if one not in extras]
    scripts = [one for one in arguments if one.startswith("benchmarks/") and not (ROOT / one).is_file()]
    return "".join(f"no extra {one}" for one in missing) + "".join(f"no file {one}" for one in scripts)


def problems(text: str) -> list[str]:
    """Return what is wrong with the commands of a page's blocks, one line each."""
    copied: dict[str, str] = {}
    found = []
    for line in command_lines(text):
        program = line.partition(" ")[0].rpartition("/")[2]
        if program == "medlt":
            said = problem_of(line, copied)
        elif program in ("make", "pip", "python", "python3") or "benchmarks/" in line:
            said = other_problem(line)
        else:
            continue
        found += [f"{line}: {said}"] if said else []
    return found


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shipped configs name their data by this variable."""
    monkeypatch.setenv("MEDLT_DATA", "somewhere")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_can_be_typed(page: Path) -> None:
    assert problems("".join(one.text for one in of_kind("console") if one.page == page)) == []


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return re.sub(r"^\s*```.*?^\s*```\s*$", "", page.read_text(), flags=re.M | re.S)


CURRENT = [page for page in PAGES if page.parent.name != "decisions"]
"""A decision may name what was."""


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_keys_in_the_text_exist(page: Path) -> None:
    """In the text, `medlt ...` names a command and options that are there, and `section.key` a key of a config."""
    found = []
    for code in re.findall(r"`(medlt [^`]+)`", prose(page)):
        try:
            command, rest = find_command([one for one in code.replace("\\|", "|").split()[1:] if "|" not in one])
        except UsageError as error:
            found.append(f"{code}: {error.format_message()}")
            continue
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
        found += [f"{code}: no option {one}" for one in rest if one.startswith("--") and one.strip("[]") not in options]
    sections = {key for key in keys() if "." not in key}
    for key in re.findall(r"`(\w+(?:\.\w+)+)(?:[=:][^`]*)?`", prose(page)):
        first, last = key.split(".")[0], key.split(".")[-1]
        if first in sections and not last.isupper() and last not in FILES and not known_key(key):
            found.append(f"{key}: no such key")
    assert found == []


FOREIGN = {"--no-index", "--find-links", "--constraint", "--nproc_per_node", "--cpu", "--check", "--help"}
"""Options of other programs that the pages explain."""


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_in_the_text_exist(page: Path) -> None:
    """In the text, `--option` is one of a command of medlt, of a script in benchmarks/, or of a program named here."""
    scripts = "\n".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    known = FOREIGN | {
        name for one in every_command(GROUP) for p in one.params for name in (*p.opts, *p.secondary_opts)
    }
    named = re.findall(r"`(--[a-z][\w-]*)", prose(page))
    assert [one for one in named if one not in known and f'"{one}"' not in scripts] == []


def every_command(group: Any) -> Iterator[Any]:
    """Yield a group's commands, those of its groups included."""
    for command in group.commands.values():
        yield command
        if hasattr(command, "commands"):
            yield from every_command(command)


DEFINED = re.compile(r"^\s*(?:def|class) (\w+)|^(\w+)(?:: [^=]+)? = ", re.M)


@cache
def defined() -> frozenset[str]:
    """Return every name that a module of medlt defines."""
    sources = [path.read_text() for path in (ROOT / "medlt").rglob("*.py")]
    return frozenset(name for source in sources for pair in DEFINED.findall(source) for name in pair if name)


OTHERS = {"load_dataset", "load_lora_weights", "from_pretrained", "save_pretrained", "python", "NIH_Dataset"}
OTHERS |= {"NIH_CXR_Dataset", "MIMIC_CXR_Dataset", "CheX_Dataset"}
"""Functions of other packages that the pages call by name."""


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_of_python_in_the_text_exist(page: Path) -> None:
    """In the text, `medlt.a.b` can be imported, `medlt/a.py` is a file, and `name(...)` is defined in medlt."""
    text, missing = prose(page), []
    for dotted in re.findall(r"`(medlt(?:\.\w+)+)", text):
        try:
            pkgutil.resolve_name(dotted)
        except (ImportError, AttributeError):
            missing.append(dotted)
    missing += [
        path for path in re.findall(r"`((?:medlt|tests|benchmarks)/[\w/.]+)", text) if not (ROOT / path).exists()
    ]
    called = re.findall(r"`(?:\w+\.)*(\w+)\(", text)
    missing += [name for name in called if name not in defined() | OTHERS]
    assert missing == []


FILES = {"parquet", "json", "csv", "yaml", "html", "py", "png", "md"}


# ---------------------------------------------------------------------------- Python that is run
RUNNING = list(dict.fromkeys(block.page for block in of_kind("run")))


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.usefixtures("small")
def test_the_python_of_a_page_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_blocks([block for block in of_kind("run") if block.page == page], workplace, monkeypatch)


def run_blocks(blocks: list[Block], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the blocks of a page one after the other in one namespace; return it."""
    monkeypatch.chdir(workplace)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
    return names


# ---------------------------------------------------------------------------- Python that is only checked
@dataclass(frozen=True)
class Instance:
    """A value of which only the class is known."""

    of: type


UNKNOWN = object()


class Reader(ast.NodeVisitor):
    """Reads Python without running it: imports must work, attributes exist, and calls fit signatures."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.problems: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        self._import(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._import(node)

    def _import(self, node: ast.stmt) -> None:
        try:
            exec(compile(ast.Module([node], []), "page", "exec"), self.names)
        except ImportError as error:
            self.problems.append(str(error))

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        value = self.value(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.names[target.id] = value

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.value(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = self.value(node.func)
        if callable(called) and not isinstance(called, Instance):
            self._fits(node, called)
        self.generic_visit(node)

    def _fits(self, node: ast.Call, called: Any) -> None:
        if any(isinstance(one, ast.Starred) for one in node.args) or any(one.arg is None for one in node.keywords):
            return
        try:
            signature = inspect.signature(called)
        except (TypeError, ValueError):
            return
        try:
            signature.bind(*node.args, **{str(one.arg): one.value for one in node.keywords})
        except TypeError as error:
            self.problems.append(f"{ast.unparse(node.func)}: {error}")

    def value(self, node: ast.expr) -> Any:
        """Return the object of an expression, an Instance of its class, or UNKNOWN."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, UNKNOWN)
        if isinstance(node, ast.Call):
            return self._result(self.value(node.func))
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        owner = self.value(node.value)
        if isinstance(owner, Instance):
            return self._member(owner.of, node)
        if not (isinstance(owner, ModuleType) or inspect.isclass(owner)):
            return UNKNOWN
        try:
            return getattr(owner, node.attr)
        except AttributeError:
            self._missing(node)
            return UNKNOWN

    def _member(self, kind: type, node: ast.Attribute) -> Any:
        """Return a member of a class's instance: a bound function, or UNKNOWN for a value."""
        member = inspect.getattr_static(kind, node.attr, None)
        if member is None:
            declared = {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
            if node.attr not in declared and not hasattr(kind, "__getattr__"):
                self._missing(node)
            return UNKNOWN
        return member.__get__(object.__new__(kind), kind) if inspect.isfunction(member) else UNKNOWN

    def _missing(self, node: ast.Attribute) -> None:
        self.problems.append(f"{ast.unparse(node)}: there is no {node.attr}")

    def _result(self, called: Any) -> Any:
        """Return what a call gives, as far as its annotation says."""
        if inspect.isclass(called):
            return Instance(called)
        try:
            given = typing.get_type_hints(called).get("return")
        except (TypeError, NameError, AttributeError):
            return UNKNOWN
        if given is typing.Self and inspect.isclass(owner := getattr(called, "__self__", None)):
            given = owner
        ours = inspect.isclass(given) and given.__module__.partition(".")[0] == "medlt"
        return Instance(given) if ours else UNKNOWN


def misuses(source: str) -> list[str]:
    """Return what is wrong with Python that is not run, one line each."""
    reader = Reader()
    for statement in ast.parse(source).body:
        reader.visit(statement)
    return list(dict.fromkeys(reader.problems))


CHECKED = list(dict.fromkeys(block.page for block in of_kind("check")))


@pytest.mark.parametrize("page", CHECKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_of_a_page_fits_the_code(page: Path) -> None:
    """Blocks of both kinds are read, one after the other, so that names of earlier blocks are known."""
    assert misuses("".join(block.text for block in of_kind("run", "check") if block.page == page)) == []


# ---------------------------------------------------------------------------- the checks find what is wrong
def one_block(text: str) -> Block:
    (block,) = blocks_of(ROOT / "page.md", text)
    return block


def test_a_wrong_block_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    fragment = one_block("<!-- block: fragment of=phantom/minority -->\n```yaml\nmethod: {guidence_scale: 2}\n```\n")
    with pytest.raises(InputError, match="guidence_scale"):
        check_config(fragment, tmp_path, monkeypatch)
    with pytest.raises(InputError, match="output_dir"):
        check_config(one_block("```yaml\nmethod: fusion\n```\n"), tmp_path, monkeypatch)
    with pytest.raises(ImportError):
        run_blocks([one_block("```python\nfrom medlt import nothing_of_this_name\n```\n")], workplace, monkeypatch)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("medlt augmnt mine.yaml", "no command"),
        ("medlt audit runs/x --shadows 8", "--shadows"),
        ("medlt run nih14/nothing", "no config"),
        ("medlt run mine.yaml targets.target=3", "no such key"),
        ("medlt run phantom/fusion size=5", "size"),
        ("medlt config copy dicom_folder/fusion && medlt run fusion.yaml method.rule=never", "rule"),
        ("medlt manifest csv", "Missing"),
        ("make wheelhous", "no target"),
        ("pip install 'medlt[everything]'", "no extra"),
        ("python benchmarks/nothing.py", "no file"),
    ],
)
def test_a_wrong_command_fails(line: str, said: str) -> None:
    assert len(found := problems(line)) == 1
    assert said in found[0]
    assert problems("medlt run demo/demo format=dicom --out there  # a comment\nmake demo OUT=there\n") == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("from medlt.data.manifest import Manifold", "Manifold"),
        ("from medlt.data.dicom import read_dicom\nread_dicom('x', colour=1)", "colour"),
        ("import medlt.privacy\nmedlt.privacy.clame('x')", "clame"),
        ("from medlt.data.manifest import Manifest\nm = Manifest.read('x')\nm.wher(1)", "wher"),
        ("from medlt.data.manifest import Manifest\nm = Manifest.read('x')\nm.split(a=1)", "split"),
    ],
)
def test_wrong_python_fails(source: str, said: str) -> None:
    assert len(found := misuses(source)) == 1
    assert said in found[0]
    assert misuses("from medlt.data.manifest import Manifest\nManifest.read('x').split('train').counts()") == []
