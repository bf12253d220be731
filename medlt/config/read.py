"""From YAML to a validated config and back."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from medlt.config import catalogue
from medlt.config.base import Strict, Typed
from medlt.config.messages import explain
from medlt.config.run import RunConfig, complete
from medlt.config.verdict import EvaluateConfig, SourceConfig
from medlt.names import did_you_mean
from medlt.plugins import METHODS
from medlt.types import InputError
from medlt.yaml_text import read_yaml

C = TypeVar("C", bound=Strict)
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")
COMMENT = re.compile(r"(?:^|\s)#")


def _expand(text: str, where: Path) -> str:
    """Replace ${NAME} and ${NAME:-default} by the environment, as a shell does; comments may name unset variables."""
    return "\n".join(_expanded(line, where) for line in text.split("\n"))


def _expanded(line: str, where: Path) -> str:
    comment = COMMENT.search(line)
    end = comment.start() if comment else len(line)

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if (known := os.environ.get(name) or default) is not None:
            return known
        if match.start() >= end:
            return match[0]
        raise InputError(f"{where}: the variable {name} is not set; export {name}=... first")

    return VARIABLE.sub(value, line)


def _override(tree: dict[str, Any], assignment: str, typed: bool) -> None:
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
        read = read_yaml(value)
    except InputError as error:
        raise InputError(f"override {key}: {error}") from None
    tree[last] = _as_typed(read) if typed else read


def _as_typed(value: Any) -> Any:
    """Return a value whose paths are relative to the working folder."""
    if isinstance(value, dict):
        return {name: _as_typed(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_as_typed(one) for one in value]
    return Typed(value) if isinstance(value, str) else value


def parse(tree: dict[str, Any], where: str = "config", folder: Path | None = None) -> RunConfig:
    """Return the config of a run from a mapping. Its paths are relative to `folder`, or to the working folder.

    Raises InputError with one clear line.
    """
    return _valid(RunConfig, tree, where, folder)


def parse_verdict(tree: dict[str, Any], where: str = "config", folder: Path | None = None) -> EvaluateConfig:
    """Return the config of an experiment from a mapping, as `parse` does. Raises InputError with one clear line."""
    return _valid(EvaluateConfig, tree, where, folder)


def _valid(model: type[C], tree: dict[str, Any], where: str, folder: Path | None) -> C:
    try:
        return model.model_validate(tree, context={"folder": folder or Path()})
    except ValidationError as error:
        seen = complete(tree) if model is RunConfig else tree
        raise InputError(f"{where}: {explain(error, model, seen)}") from None
    except InputError as error:  # of a plug-in
        raise InputError(f"{where}: {error}") from None


def _by_method(tree: dict[str, Any], method: str, out_given: bool) -> dict[str, Any]:
    """Return the config for another method: with its defaults, its own folder, and the trained parts of the old one."""
    if complete(tree)["method"].get("kind", "fusion") == method:
        return tree
    if method not in METHODS:
        raise InputError(f"--method: {METHODS.unknown(method)}")
    out = Path(tree.get("output_dir", "runs"))
    changed = {**tree, "method": method, "artifacts_dir": tree.get("artifacts_dir") or str(out / "artifacts")}
    changed.pop("ablation", None)
    return changed if out_given else {**changed, "output_dir": f"{out}-{method}"}


def find(given: Path) -> Path:
    """Return the file of a config: the given one, or where there is none the shipped one of that name.

    Raises InputError for a path that is neither.
    """
    if given.is_file():
        return given
    if str(given) in catalogue.names():
        return catalogue.path(str(given))
    if given.suffix in (".yaml", ".yml"):
        raise InputError(
            f"{given.absolute()}: no such config file; `medlt config list` names those that ship with medlt"
        )
    close = did_you_mean(str(given), catalogue.names()) or ";"
    raise InputError(f"{given}: no such config file{close} `medlt config list` names those that ship with medlt")


def folder_of(path: Path) -> Path:
    """Return the folder that the paths of a config start from: its own; of a shipped config the working folder."""
    shipped = catalogue.folder().resolve() in path.resolve().parents
    return Path().absolute() if shipped else path.parent.absolute()


def _read(path: Path, hint: str = "begin with 'method: fusion'") -> dict[str, Any]:
    """Return the YAML as a mapping, its variables replaced; hint: what to write into an empty file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no UTF-8 text; save it as UTF-8") from None
    expanded = _expand(text, path)
    try:
        tree = read_yaml(expanded)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: holds no settings; {hint}")
    return tree


def load_config(
    path: Path, overrides: Sequence[str] = (), method: str | None = None, folder: Path | None = None
) -> RunConfig:
    """Return the config of a run from its YAML, for `method` if given, with `section.key=value` overrides.

    Paths of the file are relative to it, paths of overrides to the working folder, or all to `folder` if given.
    Raises InputError with one clear line.
    """
    tree, given = _read(file := find(Path(path))), str(path)
    if "arms" in tree:
        raise InputError(f"{given}: is an experiment; use `medlt evaluate {given}`")
    if method is not None:
        tree = _by_method(tree, method, any(one.startswith("output_dir=") for one in overrides))
    for assignment in overrides:
        _override(tree, assignment, typed=folder is None)
    return parse(tree, given, folder or folder_of(file))


def load_verdict(path: Path, overrides: Sequence[str] = ()) -> EvaluateConfig:
    """Return the config of an experiment from its YAML, as `load_config` does. Configs of sources are relative to it.

    Raises InputError with one clear line, also for the config of a source that does not exist.
    """
    tree, given = _read(file := find(Path(path))), str(path)
    for assignment in overrides:
        _override(tree, assignment, typed=True)
    if "arms" not in tree:
        raise InputError(f"{given}: has no arms, so it is no experiment; add arms, or use `medlt run {given}`")
    config = parse_verdict(tree, given, folder_of(file))
    placed = {name: _placed(name, source, file) for name, source in config.sources.items()}
    return config.model_copy(update={"sources": placed})


def _placed(name: str, source: SourceConfig, experiment: Path) -> SourceConfig:
    """Return the source with the absolute path of its config. Raises InputError if the file does not exist."""
    if source.config is None:
        return source
    file = (experiment.parent / source.config.expanduser()).absolute()
    if not file.is_file():
        raise InputError(f"{experiment}: sources.{name}.config: {file} does not exist; write it relative to this file")
    return source.model_copy(update={"config": file})


def load_any(path: Path, overrides: Sequence[str] = ()) -> RunConfig | EvaluateConfig:
    """Return the config of a run or of an experiment, whichever the YAML is. Raises InputError with one clear line."""
    load: Callable[[Path, Sequence[str]], RunConfig | EvaluateConfig]
    load = load_verdict if "arms" in _read(find(Path(path))) else load_config
    return load(path, overrides)


def load_settings(path: Path, model: type[C]) -> C:
    """Return the settings of `model` from a YAML file of their own. Raises InputError with one clear line."""
    if not path.is_file():
        raise InputError(f"{path.absolute()}: no such file; check the path")
    return _valid(model, _read(path, f"begin with one of {', '.join(model.model_fields)}"), str(path), path.parent)


def dump(config: Strict, folder: Path | None = None) -> str:
    """Return the resolved config as YAML that `load_config` reads back to an equal config.

    Paths in `folder`, where the YAML is written, are relative to it, so that the folder may be moved.
    """
    tree = config.model_dump(mode="json")
    if folder is not None:
        tree = _relative(config.model_dump(), tree, Path(folder).absolute())
    return str(yaml.safe_dump(tree, sort_keys=False))


def _relative(values: Any, tree: Any, folder: Path) -> Any:
    """Return `tree`, the JSON of `values`, with the paths below `folder` relative to it."""
    if isinstance(values, Path) and values.is_relative_to(folder):
        return str(values.relative_to(folder))
    if isinstance(values, Mapping):
        return {name: _relative(values[name], one, folder) for name, one in tree.items()}
    if isinstance(values, list | tuple):
        return [_relative(value, one, folder) for value, one in zip(values, tree, strict=True)]
    return tree
