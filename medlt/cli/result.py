"""How a result and an error are printed: JSON for programs, one line for people."""

from __future__ import annotations

import json
import math
from typing import IO, Any

import typer


def as_json_text(value: dict[str, Any]) -> str:
    """Return the value as one line of JSON. Not a number and infinity become null, numpy's numbers become Python's."""
    return json.dumps(_plain(value), default=str)


def _plain(value: Any) -> Any:
    """Return the value with text as keys, lists for tuples, and only numbers that JSON has."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if not isinstance(value, str | int | float) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(line: str, code: int, as_json: bool, out: IO[str] | None = None) -> None:
    """Print an error as one line on stderr, and with `as_json` also as one JSON object on stdout."""
    if as_json:
        typer.echo(as_json_text({"error": line, "exit_code": code}), file=out)
    typer.echo(f"medlt: {line}", err=True)
