"""Sections whose settings come from a registry of plug-ins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo, create_model
from pydantic_core import core_schema

from medlt.config.base import Strict
from medlt.plugins import Registry

MARK = "plug-ins"
"""Key of a JSON schema that stands for the plug-ins of a group until `medlt.config.schema` lists them."""


@cache
def settings_model(registry: Registry[Any], name: str, base: type[BaseModel] = Strict) -> type[BaseModel]:
    """Return the settings model of a plug-in; an added one is closed, a subclass of `base`, and has a `kind`.

    Raises InputError for an unknown name, PluginError for a plug-in that cannot be imported.
    """
    model = registry.settings(name)
    if name in registry.own:
        return model
    bases = model if issubclass(model, base) else (model, base)
    kind: dict[str, Any] = {}
    if "kind" in base.model_fields:
        kind["kind"] = (Literal[name], Field(name, description=f"plug-in of {registry.package(name)}"))
    return create_model(model.__name__, __base__=bases, __module__=model.__module__, __doc__=model.__doc__, **kind)


def optional_sections(registry: Registry[Any], given: dict[str, Any]) -> type[BaseModel]:
    """Return a closed model with a section, or null, for each key of `given` that names a plug-in."""
    fields: dict[str, Any] = {name: (settings_model(registry, name) | None, None) for name in given if name in registry}
    return create_model("Plugins", __base__=Strict, **fields)


@dataclass(frozen=True)
class Plugged:
    """Marks a field that holds a section, whose `kind` names a plug-in of the registry."""

    registry: Registry[Any]
    default: str | None = None

    def model(self, kind: str, base: type[BaseModel]) -> type[BaseModel]:
        """Return the settings model of a kind."""
        return settings_model(self.registry, kind, base)

    def kind_of(self, given: Any) -> Any:
        """Return the kind of a section as it was written, None where it is missing."""
        return given.get("kind", self.default) if isinstance(given, dict) else None

    def validate(self, base: type[BaseModel], given: Any, info: ValidationInfo) -> BaseModel:
        """Return the section of what was written: a name, or a mapping with a `kind`."""
        if isinstance(given, base):
            return given
        given = {"kind": given} if isinstance(given, str) else given
        if not isinstance(given, dict):
            raise ValueError(f"must be a section with a kind; choose one of {', '.join(self.registry)}")
        if (kind := self.kind_of(given)) is None:
            raise ValueError(f"kind is missing; choose one of {', '.join(self.registry)}")
        if not isinstance(kind, str) or kind not in self.registry:
            raise ValueError(self.registry.unknown(kind))
        return self.model(kind, base).model_validate({**given, "kind": kind}, context=info.context)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(partial(self.validate, source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {MARK: self.registry.group}
