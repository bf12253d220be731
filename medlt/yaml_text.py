"""Reads YAML of any origin: no objects, no key given twice, and no text that a few lines make endless.

Aliases let a short text stand for billions of values, and merged sections (`<<`) write them out. The size that a text
stands for is therefore counted before anything is built of it.
"""

from __future__ import annotations

from typing import Any

import yaml

from medlt.types import InputError

MOST_VALUES = 100_000
"""Values and sections that a text may stand for, aliases written out."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A safe loader that refuses a key given twice in one section; YAML would drop the first value without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(str(key.value))
        return dict(super().construct_mapping(node, deep))


def read_yaml(text: str) -> Any:
    """Return the value of a YAML document; None of an empty one. Raises InputError with the reason, in one line."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _values(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a number or a date that is none
        raise InputError(f"not readable as YAML: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return the reason in one line, with the line of the text where it is known."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


def _values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return how many values a node stands for. Raises YAMLError for too many, or for one that holds itself."""
    if id(node) in known:
        if (size := known[id(node)]) is None:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a section holds itself")
        return size
    known[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    total = known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    if total > MOST_VALUES:
        raise yaml.YAMLError(f"it stands for more than {MOST_VALUES:,} values; write it with fewer aliases")
    return total
