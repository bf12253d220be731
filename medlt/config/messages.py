"""Messages for settings that are not valid: what is wrong, where, and what to type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from medlt.config.plugged import Plugged, settings_model
from medlt.names import did_you_mean
from medlt.plugins import CHECKS

LISTED = 30
"""Names that a message lists, at most."""
EXPECTED = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "bool_parsing": "true or false", "bool_type": "true or false",
    "string_type": "text", "path_type": "a path", "path_error": "a path",
    "list_type": "a list, such as [A, B]", "tuple_type": "a list, such as [A, B]",
    "dict_type": "a section of names and values", "mapping_type": "a section of names and values",
    "model_type": "a section of settings",
    "model_attributes_type": "a section of settings", "none_required": "null",
}  # fmt: skip
LIMITS = {
    "greater_than": ("greater than", "gt"), "greater_than_equal": ("at least", "ge"), "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"), "multiple_of": ("a multiple of", "multiple_of"),
}  # fmt: skip


def explain(error: ValidationError, model: type[BaseModel], given: Any) -> str:
    """Return the first problem of `given`, the settings of `model`, in one line: KEY, what is wrong, what to type."""
    problems: dict[str, list[ErrorDetails]] = {}
    for one in error.errors(include_url=False):
        problems.setdefault(_key(_names(one, given)), []).append(one)
    key, first = next(iter(problems.items()))
    clause = _clause(key, first, model, given)
    return clause + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _names(error: ErrorDetails, given: Any) -> list[str | int]:
    """Return the location of an error as keys of `given`, without the names of types that pydantic adds."""
    names: list[str | int] = []
    node, last = given, len(error["loc"]) - 1
    for i, part in enumerate(error["loc"]):
        if isinstance(node, Mapping):
            if part not in node and not (i == last and error["type"] == "missing"):
                continue
            node = node.get(part)
        elif isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        elif isinstance(node, BaseModel) and part in type(node).model_fields:
            node = getattr(node, str(part))
        else:
            continue
        names.append(part)
    return names


def _key(names: Sequence[str | int]) -> str:
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).removeprefix(".")


def _clause(key: str, errors: list[ErrorDetails], model: type[BaseModel], given: Any) -> str:
    first, value = errors[0], errors[0]["input"]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(_names(first, given), model, given)
    if kind == "missing":
        return f"{key} is missing; add it to the config"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _without_kind(f"{key}.kind", context, value)
    if kind in ("literal_error", "enum") and len(errors) == 1:
        return f"{key}: {_choose(value, _choices(context))}"
    if kind in ("value_error", "assertion_error"):
        reason = str(context.get("error", first["msg"]))
        return f"{key}: {reason}" if key else reason
    wanted = " or ".join(dict.fromkeys(expected(one) for one in errors))
    return f"{key}: must be {wanted}" + ("" if isinstance(value, dict | list | BaseModel) else f", not {value!r}")


def expected(error: ErrorDetails) -> str:
    """Return what a value must be."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in LIMITS:
        words, name = LIMITS[kind]
        return f"{words} {context[name]:g}"
    if kind in ("literal_error", "enum"):
        return " or ".join(_choices(context))
    if kind in ("too_short", "too_long"):
        number = context.get("min_length", context.get("max_length"))
        return f"a list of at {'least' if kind == 'too_short' else 'most'} {number} values"
    return EXPECTED.get(kind) or "valid: " + error["msg"].removeprefix("Input should be ").lower()


def _choices(context: Mapping[str, Any]) -> list[str]:
    """Return the values that a choice offers, from pydantic's text of them."""
    return re.findall(r"'([^']*)'", str(context.get("expected", "")))


def _choose(value: Any, choices: Sequence[str]) -> str:
    return f"{value!r} is not valid{did_you_mean(str(value), choices) or ';'} choose one of {', '.join(choices)}"


def _without_kind(key: str, context: Mapping[str, Any], value: Any) -> str:
    """Return the message for a section whose kind is missing or unknown."""
    choices = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
    if isinstance(value, Mapping) and value.get("kind") is not None:
        return f"{key}: {_choose(value['kind'], choices)}"
    return f"{key} is missing; " + (f"choose one of {', '.join(choices)}" if choices else "add it to the section")


def _unknown(names: Sequence[str | int], model: type[BaseModel], given: Any) -> str:
    """Return the message for a key that no section has, with the closest key of its section, or its place elsewhere."""
    *parents, last = names
    section = section_at(model, parents, given)
    known = [] if section is None else keys(section)
    close = did_you_mean(str(last), known)
    if not close and not parents:
        places = [f"{name}.{last}" for name, field in model.model_fields.items() if last in _keys_below(field, given)]
        close = f"; did you mean {' or '.join(places)}?" if places else ""
    where = _key(parents)
    has = f"{where or 'a config'} has {', '.join(known[:LISTED])}" if known else "check its spelling"
    return f"{_key(names)} is not a known key{close or f'; {has}'}"


def _keys_below(field: FieldInfo, given: Any) -> list[str]:
    """Return the keys of the sections that a field may hold."""
    return [key for section in sections(field).values() for key in keys(section)]


def keys(section: type[BaseModel]) -> list[str]:
    """Return the keys of a section, those of plug-in checks included."""
    extra = [name for name in CHECKS if name not in section.model_fields] if _takes_checks(section) else []
    return [*section.model_fields, *extra]


def _takes_checks(section: type[BaseModel]) -> bool:
    return section.model_config.get("extra") == "allow"


def section_at(model: type[BaseModel], names: Sequence[str | int], given: Any) -> type[BaseModel] | None:
    """Return the section at a place of a config; None where the place is no section."""
    section: type[BaseModel] | None = model
    node, field = given, None
    for name in names:
        node = _child(node, name)
        if isinstance(name, int):
            section = None if field is None else _chosen(field, node)
        elif section is not None and name in section.model_fields:
            field = section.model_fields[name]
            section = _chosen(field, node)
        elif section is not None and _takes_checks(section) and name in CHECKS:
            section = settings_model(CHECKS, name)
        elif field is not None:  # a name in a mapping, such as that of an arm
            section = _chosen(field, node)
        else:
            section = None
    return section


def _child(node: Any, name: str | int) -> Any:
    try:
        return node[name]
    except (KeyError, IndexError, TypeError):
        return None


def _chosen(field: FieldInfo, node: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, by the kind that was written, or by the default's."""
    options = sections(field)
    kind = node.get("kind") if isinstance(node, Mapping) else None
    kind = kind or getattr(field.default, "kind", None) or next(iter(options), None)
    return options.get(str(kind), options.get(""))


def sections(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """Return the sections that a field may hold, by their kind; '' for one without a kind. Plug-ins are imported."""
    for mark in field.metadata:
        if isinstance(mark, Plugged):
            base = field.annotation
            assert isinstance(base, type)
            return {name: mark.model(name, base) for name in mark.registry}
    return {_kind(model): model for model in _models(field.annotation)}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _kind(model: type[BaseModel]) -> str:
    field = model.model_fields.get("kind")
    return str(field.default) if field is not None else ""
