"""The JSON schemas of configs, for editors and for the page "Every setting"; installed plug-ins are in them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from medlt.config.base import Strict
from medlt.config.learning import CodecConfig
from medlt.config.methods import MethodConfig
from medlt.config.plugged import MARK, settings_model
from medlt.config.run import RunConfig
from medlt.config.verdict import EvaluateConfig
from medlt.plugins import CHECKS, CODECS, METHODS, PluginError, Registry

log = logging.getLogger(__name__)
REGISTRIES: dict[str, tuple[Registry[Any], type[BaseModel]]] = {
    METHODS.group: (METHODS, MethodConfig),
    CODECS.group: (CODECS, CodecConfig),
    CHECKS.group: (CHECKS, Strict),
}
TEMPLATE = "#/$defs/{model}"


def schema(kind: Literal["run", "verdict"] = "run") -> dict[str, Any]:
    """Return the JSON schema of a config: of `medlt run`, or of `medlt evaluate`.

    A plug-in that cannot be imported is left out, with a warning.
    """
    model: type[Strict] = RunConfig if kind == "run" else EvaluateConfig
    whole = _any_of(model.model_json_schema())
    plugged = {group: dict(_sections(*REGISTRIES[group])) for group in sorted(set(_marks(whole)))}
    models = [(one, "validation") for sections in plugged.values() for one in sections.values()]
    references, definitions = models_json_schema(models, ref_template=TEMPLATE)  # type: ignore[arg-type]
    whole["$defs"] = {**whole.get("$defs", {}), **_any_of(definitions.get("$defs", {}))}
    named = {group: {name: references[one, "validation"] for name, one in sections.items()}
             for group, sections in plugged.items()}  # fmt: skip
    whole = _filled(whole, named)
    arms = whole.get("properties", {}).get("arms")
    if arms is not None:  # an arm without settings changes nothing
        arms["additionalProperties"] = {"anyOf": [arms["additionalProperties"], {"type": "null"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def _sections(registry: Registry[Any], base: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name in registry:
        try:
            yield name, settings_model(registry, name, base)
        except PluginError as error:
            log.warning("%s", error)


def _marks(node: Any) -> Iterator[str]:
    """Yield the groups of plug-ins that a schema stands for."""
    if isinstance(node, dict):
        if MARK in node:
            yield node[MARK]
        for value in node.values():
            yield from _marks(value)
    elif isinstance(node, list):
        for value in node:
            yield from _marks(value)


def _filled(node: Any, named: dict[str, dict[str, Any]]) -> Any:
    """Return the schema with the sections of plug-ins: as choices of a field, or as optional keys of `checks`."""
    if isinstance(node, list):
        return [_filled(one, named) for one in node]
    if not isinstance(node, dict):
        return node
    new = {name: _filled(value, named) for name, value in node.items() if name != MARK}
    if MARK not in node:
        return new
    sections = named[node[MARK]]
    if "properties" not in new:
        return {"anyOf": [{"enum": list(sections)}, *sections.values()], **new}
    added = {
        name: {"anyOf": [section, {"type": "null"}], "default": None, "description": "check of a plug-in"}
        for name, section in sections.items()
        if name not in new["properties"]
    }
    return {**new, "properties": {**new["properties"], **added}}


def _any_of(node: Any) -> Any:
    """Return the schema with `anyOf` for `oneOf`: a section without its `kind` fits more than one form."""
    if isinstance(node, dict):
        return {"anyOf" if name == "oneOf" else name: _any_of(value) for name, value in node.items()}
    return [_any_of(one) for one in node] if isinstance(node, list) else node
