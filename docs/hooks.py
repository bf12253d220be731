"""Pages that MkDocs writes from the code at each build, so that none of them can go stale.

`python docs/hooks.py` writes the table of commands into README.md.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import medlt
from medlt.cli import app
from medlt.config import schema

NOTE = "<!-- written by docs/hooks.py from the code; not a file to edit -->\n\n"
SCALARS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
Schema = dict[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of the folder."""
    for path, page in GENERATED.items():
        files.append(File.generated(config, path, content=NOTE + page()))
    return files


# ---------------------------------------------------------------------------- settings
def settings_page() -> str:
    """Return the page "Every setting": each key of both kinds of config, from their JSON schemas."""
    run, verdict = schema("run"), schema("verdict")
    places = {name: path for path, name in (*_places(verdict), *reversed([*_places(run)]))}
    defs = run["$defs"] | verdict["$defs"]
    order = list(dict.fromkeys(name for _, name in (*_places(run), *_places(verdict)) if "enum" not in defs[name]))
    parts = [
        "# Every setting\n",
        "This page is written from `medlt config schema` and `medlt config schema verdict`. A key that is not listed",
        "is an error. A value of a section `a` with key `b` is set on the command line as `a.b=value`.\n",
        "A path starts at the folder of the config file, and on the command line at the working folder. `~`, `${VAR}`",
        "and `${VAR:-default}` are expanded.\n",
        "## Config of `medlt run`, `augment` and `train`\n",
        *_table(run, places, defs),
        "## Config of `medlt evaluate`\n",
        *_table(verdict, places, defs),
        "## Sections\n",
    ]
    for name in order:
        parts += [f"### {places[name]} {{: #{name.lower()} }}\n", _sentence(defs[name]), ""]
        parts += _table(defs[name], places, defs)
    return "\n".join(parts)


def _places(root: Schema) -> Iterator[tuple[str, str]]:
    """Yield where each section of a schema stands, as (key, name of its definition), outermost first."""
    level, seen = [("", root)], set[str]()
    while level:
        deeper = []
        for prefix, node in level:
            for key, value in node.get("properties", {}).items():
                for name, many in _refs(value):
                    kind = root["$defs"][name].get("properties", {}).get("kind", {}).get("const")
                    path = f"{prefix}{key}{many}"
                    if name not in seen:
                        seen.add(name)
                        yield f"`{path}`" + (f", kind {kind}" if kind else ""), name
                        deeper.append((f"{path}.", root["$defs"][name]))
        level = deeper


def _refs(node: Schema, many: str = "") -> Iterator[tuple[str, str]]:
    """Yield the sections that a value may be; the second item is what follows its key in a path."""
    if "$ref" in node:
        yield node["$ref"].rpartition("/")[2], many
    for option in node.get("anyOf", ()):
        yield from _refs(option, many)
    if isinstance(node.get("items"), dict):
        yield from _refs(node["items"], "[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from _refs(node["additionalProperties"], ".NAME")


def _table(node: Schema, places: dict[str, str], defs: dict[str, Schema]) -> list[str]:
    rows = ["| key | type | default | description |", "|---|---|---|---|"]
    for key, value in node.get("properties", {}).items():
        kind = _type(value, places, defs) + _bounds(value)
        default = "required" if key in node.get("required", ()) else _default(value)
        rows.append(f"| `{key}` | {kind} | {default} | {_cell(_sentence(value))} |")
    return [*rows, ""]


def _type(node: Schema, places: dict[str, str], defs: dict[str, Schema]) -> str:
    """Return what a value may be, in words; sections are links."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if "enum" in defs[name]:
            return _type(defs[name], places, defs)
        return f"[{places[name].replace('`', '')}](#{name.lower()})"
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type(option, places, defs) for option in node["anyOf"]))
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{one}`" for one in node["enum"])
    if node.get("type") == "array":
        items = node.get("items")
        return "list" if not items else f"list of {_type(items, places, defs)}"
    if node.get("type") == "object":
        return f"names with {_type(node['additionalProperties'], places, defs)}"
    return "path" if node.get("format") == "path" else SCALARS.get(node.get("type", ""), "any value")


BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "multipleOf": "multiple of"}


def _bounds(node: Schema) -> str:
    """Return the limits of a number, or of the numbers of a list."""
    options = [node, *node.get("anyOf", ())]
    limits = [f"{sign} {option[name]:g}" for option in options for name, sign in BOUNDS.items() if name in option]
    return f", {', '.join(dict.fromkeys(limits))}" if limits else ""


def _default(node: Schema) -> str:
    if "default" not in node:
        return "the section's"
    value = node["default"]
    if isinstance(value, dict) and value:
        return "the section's defaults"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return ", ".join(f"`{one['kind']}`" for one in value)
    return f"`{json.dumps(value)}`"


def _sentence(node: Schema) -> str:
    """Return a description as a sentence; a name at its beginning keeps its small letter."""
    text = " ".join(str(node.get("description", "")).split())
    if re.match(r"[a-z]+ ", text):
        text = text[0].upper() + text[1:]
    return text + "." if text and not text.endswith(".") else text


def _cell(text: str) -> str:
    """Return text that a table cell may hold: no column mark, no link by accident."""
    return text.replace("|", "\\|").replace("[", "\\[")


# ---------------------------------------------------------------------------- commands
def commands(group: Any = None, prefix: str = "medlt") -> dict[str, Any]:
    """Return every command by what a user types, those of groups included."""
    group = group or typer.main.get_group(app)
    found: dict[str, Any] = {}
    for name in group.list_commands(typer.Context(group)):
        command = group.commands[name]
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix} {name}")
        else:
            found[f"{prefix} {name}"] = command
    return found


def usage(name: str, command: Any) -> str:
    """Return one line: the command and its arguments."""
    arguments = [_metavar(one) for one in command.params if one.param_type_name == "argument"]
    options = " [OPTIONS]" if any(one.param_type_name == "option" for one in command.params) else ""
    return " ".join([f"{name}{options}", *arguments])


def _metavar(argument: Any) -> str:
    """Return the name of an argument; in brackets where it may be left out."""
    name = str(getattr(argument, "metavar", None) or argument.name or "").strip("[]")
    name = name.removesuffix("]...")
    dots = "..." if argument.nargs == -1 else ""
    return f"{name}{dots}" if argument.required else f"[{name}]{dots}"


def cli_page() -> str:
    """Return the page "Commands": help, arguments, options and example of each command."""
    parts = [
        "# Commands\n",
        "This page is written from `medlt --help` and the help of each command.\n",
        "Exit codes: 0 all done, 1 done with some failures listed, 2 nothing done (wrong input or usage), 130",
        "interrupted, 143 terminated (SIGTERM, as a scheduler sends it). After 130 and 143 the same command resumes.",
        "medlt does not delete or overwrite results, and it does not use the network.\n",
        "With `--json` stdout is one JSON object: the result, or `error` and `exit_code`. The rest goes to stderr.\n",
        *command_table(lambda name: f"[`{name}`](#{_slug(name)})"),
        "",
        "`medlt --version` prints the version. `medlt --install-completion` installs completion for your shell.\n",
    ]
    for name, command in commands().items():
        parts += [f"## {name} {{: #{_slug(name)} }}\n", f"```\n{usage(name, command)}\n```\n"]
        parts += [inspect.cleandoc(command.help or "").replace("\f", "\n"), "", *_parameters(command)]
        parts += [_example(command)]
    return "\n".join(parts)


def command_table(shown: Callable[[str], str] = "`{}`".format) -> list[str]:
    """Return one row per command: its name and the first sentence of its help."""
    rows = [f"| {shown(name)} | {_cell(summary(one))} |" for name, one in commands().items()]
    return ["| command | |", "|---|---|", *rows]


def summary(command: Any) -> str:
    """Return the first sentence of a command's help, on one line."""
    text = " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _parameters(command: Any) -> list[str]:
    rows = ["| argument or option | default | |", "|---|---|---|"]
    for one in command.params:
        if getattr(one, "hidden", False) or one.name == "help":
            continue
        names = [*one.opts, *one.secondary_opts] if one.param_type_name == "option" else [_metavar(one)]
        shown = one.default if not callable(one.default) else None
        empty = shown is None or shown is False or shown == "" or "UNSET" in repr(shown).upper()
        default = "" if empty or one.required else f"`{shown}`"
        rows.append(
            f"| {', '.join(f'`{name}`' for name in names)} | {default} | {_cell(getattr(one, 'help', '') or '')} |"
        )
    return [*rows, ""]


def _example(command: Any) -> str:
    """Return the example of a command's help as a block."""
    lines = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    return "\n".join(["```console", *lines, "```", ""]) if lines else ""


# ---------------------------------------------------------------------------- Python
def public_names() -> dict[str, str]:
    """Return the public names of medlt with the full name of each, read from `medlt/__init__.pyi`."""
    tree = ast.parse(Path(medlt.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = {
        alias.asname or alias.name: f"medlt.{node.module}.{alias.name}" if node.module else f"medlt.{alias.name}"
        for node in imports
        for alias in node.names
    }
    return {name: full for name, full in names.items() if not name.startswith("_")}


STAND_INS = {
    "write_mimic_cxr_jpg": "medlt.data.phantom.mimic_cxr_jpg.write_mimic_cxr_jpg",
    "tiny_stable_diffusion": "medlt.testing.tiny_stable_diffusion",
}


def api_page() -> str:
    """Return the page "Python": what `import medlt` offers, from the docstrings."""
    parts = [
        "# Python\n",
        "These names are the public interface: `import medlt` offers them, and each is imported when it is first used.",
        "Other modules can be imported too, but their names may change between versions.\n",
        *(f"::: {full}\n    options:\n      heading: medlt.{name}\n" for name, full in public_names().items()),
        "`medlt.testing` writes small stand-ins for data and weights that are not there:\n",
        *(f"::: {full}\n    options:\n      heading: medlt.testing.{name}\n" for name, full in STAND_INS.items()),
    ]
    return "\n".join(parts)


GENERATED: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/cli.md": cli_page,
    "reference/api.md": api_page,
}
"""Path below docs/ -> what writes the page."""

README = Path(__file__).parents[1] / "README.md"
BETWEEN = re.compile(r"(<!-- commands: .*? -->\n)(.*?)(<!-- end of commands -->)", re.S)


def readme() -> str:
    """Return README.md with the table of commands as the code has it."""
    table = "\n".join(command_table())
    return BETWEEN.sub(lambda match: f"{match[1]}\n{table}\n\n{match[3]}", README.read_text())


if __name__ == "__main__":
    README.write_text(readme())
