"""From a collection and keyword settings to the config that the command line uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medlt import config as configs
from medlt.api.collection import Collection
from medlt.api.defaults import Machine, defaults, machine, plain_machine
from medlt.files import digest
from medlt.types import InputError

Settings = Mapping[str, Any]
"""Keys of a config: nested mappings, dotted keys, or both."""
SHORT = {"targets": "count", "method": "kind", "engine": "kind"}
"""Section -> the key that a bare value of it sets: targets=200 is targets={"count": 200}."""
FREE = ("output_dir", "artifacts_dir", *configs.WORKING)
"""Keys that say where files lie, or where and how many processes work, and not what is made."""


def nested(settings: Settings) -> dict[str, Any]:
    """Return settings as nested dicts: dotted keys are taken apart, None is left out at the top.

    Raises InputError for a key that is given twice, or a section that is no mapping.
    """
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        if value is not None:
            _insert(tree, key.split("."), _expanded(key, value), key)
    return tree


def _expanded(key: str, value: Any) -> Any:
    short = SHORT.get(key)
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    return {short: value} if short else value


def _insert(tree: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    *parents, last = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InputError(f"{key}: {parent} is given as a value too; give one of them")
    if isinstance(value, dict) and isinstance(tree.get(last), dict):
        for name, part in value.items():
            _insert(tree[last], [name], part, f"{key}.{name}")
        return
    if last in tree:
        raise InputError(f"{key} is given twice; give it once")
    tree[last] = value


def merged(usual: Settings, given: Settings) -> dict[str, Any]:
    """Return `usual` changed by `given`, section by section; a section of another kind replaces the usual one."""
    tree = dict(usual)
    for name, value in given.items():
        old = tree.get(name)
        sections = isinstance(old, Mapping) and isinstance(value, Mapping)
        tree[name] = merged(old, value) if sections and _same_kind(old, value) else value  # type: ignore[arg-type]
    return tree


def _same_kind(old: Any, value: Any) -> bool:
    return bool(value.get("kind", old.get("kind")) == old.get("kind"))


def run_config(collection: Collection, settings: Settings) -> configs.RunConfig:
    """Return the config of a run on the collection: `settings`, and defaults by what the collection and machine are.

    Without output_dir the run folder is runs/METHOD-DIGEST; the same collection and settings give the same folder.
    Raises InputError for an unknown key or a value that does not fit.
    """
    given = nested(settings)
    if "data" in given:
        raise InputError("data: the collection is the data; leave the key out")
    _parsed(collection, given, plain_machine(given))  # reports a typo before torch is imported
    config = _parsed(collection, given, machine(given))
    collection.saved(config.output_dir.parent)
    return config


def _parsed(collection: Collection, given: Settings, on: Machine) -> configs.RunConfig:
    tree = merged(defaults(collection, given, on), given)
    named = f"{tree['method'].get('kind')}-{_digest(collection, tree)}"
    return configs.parse(_placed(collection, tree, named), "settings")


def evaluate_config(collection: Collection, usual: Settings, settings: Settings) -> configs.EvaluateConfig:
    """Return the config of an experiment on the collection: `usual` changed by `settings`.

    Without output_dir the folder is runs/verdict-DIGEST. Raises InputError as `run_config`.
    """
    given = nested(settings)
    if "data" in given:
        raise InputError("data: the collection is the data; leave the key out")
    tree = merged(usual, given)
    tree = _placed(collection, tree, f"verdict-{_digest(collection, tree)}")
    config = configs.parse_verdict(tree, "settings")
    collection.saved(config.output_dir.parent)
    return config


def _digest(collection: Collection, tree: Settings) -> str:
    """Return 8 hex digits of the rows and of all settings but those of places."""
    return digest(collection.digest(), {name: value for name, value in tree.items() if name not in FREE})[:8]


def _placed(collection: Collection, tree: dict[str, Any], named: str) -> dict[str, Any]:
    """Return the tree with its run folder as an absolute path, and the collection's table beside that folder."""
    folder = Path(tree.get("output_dir") or Path("runs") / named).expanduser().absolute()
    data = {"kind": "manifest", "path": str(collection.place(folder.parent))}
    return {**tree, "output_dir": str(folder), "data": data}
