"""From YAML to a validated config and back."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import ValidationError

from medlt.config import catalogue
from medlt.config.base import Strict
from medlt.config.run import RunConfig, complete
from medlt.config.verdict import EvaluateConfig, SourceConfig
from medlt.types import InputError

C = TypeVar("C", RunConfig, EvaluateConfig)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe, and strict: a key that stands twice in one section would silently lose what stands behind the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} is there twice, again in line {key.start_mark.line + 1}")
            seen.add(str(key.value))
        return dict(super().construct_mapping(node, deep))


def _expand(text: str, where: Path) -> str:
    """Replace ${NAME} and ${NAME:-default} by the environment, as a shell does."""

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if (found := os.environ.get(name) or default) is None:
            raise InputError(f"{where}: the variable {name} is not set; export {name}=... first")
        return found

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", value, text)


def _override(tree: dict[str, Any], assignment: str) -> None:
    """Apply one `a.b=value` in place; the value is read as YAML."""
    key, equals, value = assignment.partition("=")
    if not equals:
        raise InputError(f"override {assignment!r} has no '='; write it as section.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        elif parent == "method" and isinstance(tree[parent], str):
            tree[parent] = {"kind": tree[parent]}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise InputError(f"override {assignment!r}: {parent} is not a section")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"override {assignment!r} is not readable as YAML: {str(error).splitlines()[0]}") from None


def _told(error: ValidationError, where: str) -> str:
    """The first problem of a pydantic error as one line: what, where, how to mend."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{where}: {key} is not a known key; check its spelling and its section{more}"
    said = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    return f"{where}: {f'{key}: ' if key else ''}{said}{got}{more}"


def parse(tree: dict[str, Any], where: str = "config") -> RunConfig:
    """Validate a mapping. Raises InputError with one clear line."""
    return _valid(RunConfig, tree, where)


def parse_verdict(tree: dict[str, Any], where: str = "config") -> EvaluateConfig:
    """Validate the mapping of an experiment. Raises InputError with one clear line."""
    return _valid(EvaluateConfig, tree, where)


def _valid(kind: type[C], tree: dict[str, Any], where: str) -> C:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise InputError(_told(error, where)) from None


def _by_method(tree: dict[str, Any], method: str, out_given: bool) -> dict[str, Any]:
    """The config as a recipe of another method: its own defaults, its own folder, and what was learnt for the old."""
    if complete(tree)["method"].get("kind", "fusion") == method:
        return tree
    out = Path(tree.get("output_dir", "runs"))
    changed = {**tree, "method": method, "artifacts_dir": tree.get("artifacts_dir") or str(out / "artifacts")}
    changed.pop("ablation", None)
    return changed if out_given else {**changed, "output_dir": f"{out}-{method}"}


def find(given: Path) -> Path:
    """Return a config's file: the one that is given, or where there is none the shipped one of that name.

    Raises InputError where there is neither.
    """
    if given.is_file():
        return given
    if str(given) in catalogue.names():
        return catalogue.path(str(given))
    raise InputError(f"{given}: no such config file; `medlt config list` names those that ship with medlt")


def _read(path: Path) -> dict[str, Any]:
    """The YAML as a mapping, its variables replaced."""
    try:
        tree = yaml.load(_expand(path.read_text(), path), _Loader)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: holds no settings; begin with 'method: fusion'")
    return tree


def load(path: Path, overrides: Sequence[str] = (), method: str | None = None) -> RunConfig:
    """Read a recipe's YAML, make it one of `method`, apply `section.key=value` overrides, validate.

    Raises InputError with one clear line.
    """
    tree = _read(path := find(Path(path)))
    if "arms" in tree:
        raise InputError(f"{path}: is an experiment; use `medlt evaluate`")
    if method is not None:
        tree = _by_method(tree, method, any(given.startswith("output_dir=") for given in overrides))
    for assignment in overrides:
        _override(tree, assignment)
    return parse(tree, str(path))


def load_verdict(path: Path, overrides: Sequence[str] = ()) -> EvaluateConfig:
    """Read an experiment's YAML, as `load` does a recipe's. Configs of its sources are relative to the file.

    Raises InputError with one clear line, for a source's config that is not there too.
    """
    tree = _read(path := find(Path(path)))
    for assignment in overrides:
        _override(tree, assignment)
    if "arms" not in tree:
        raise InputError(f"{path}: is no experiment, it has no arms; give some, or use `medlt run`")
    config = _valid(EvaluateConfig, tree, str(path))
    placed = {name: _placed(name, source, path) for name, source in config.sources.items()}
    return config.model_copy(update={"sources": placed})


def _placed(name: str, source: SourceConfig, experiment: Path) -> SourceConfig:
    """The source with its config's place made absolute. Raises InputError if it is not there."""
    if source.config is None:
        return source
    found = (experiment.parent / source.config).absolute()
    if not found.is_file():
        raise InputError(f"{experiment}: sources.{name}.config: {found} is not there; name it relative to this file")
    return source.model_copy(update={"config": found})


def dump(config: Strict) -> str:
    """Return the resolved config as YAML that `load` reads back to an equal config."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def schema(kind: Literal["run", "verdict"] = "run") -> dict[str, Any]:
    """Return the JSON schema of a config, for editors: of a recipe's, or of an experiment's."""
    model: type[Strict] = RunConfig if kind == "run" else EvaluateConfig
    found = dict(_any_of(model.model_json_schema()))
    arms = found.get("properties", {}).get("arms")
    if arms is not None:  # `real:` with nothing behind it is an arm that changes nothing
        arms["additionalProperties"] = {"anyOf": [arms["additionalProperties"], {"type": "null"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _any_of(node: Any) -> Any:
    """The schema with `anyOf` for every `oneOf`: a section whose `kind` is left out fits more than one form."""
    if isinstance(node, dict):
        return {"anyOf" if name == "oneOf" else name: _any_of(value) for name, value in node.items()}
    return [_any_of(one) for one in node] if isinstance(node, list) else node
