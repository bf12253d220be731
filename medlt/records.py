"""JSON records with a checksum of their own, such as run.json and audit.json: a damaged one is not read as another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medlt.files import digest

NAME = "checksum"


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as JSON restores it, with its checksum."""
    plain = json.loads(json.dumps(dict(record)))
    return {**plain, NAME: digest(plain)}


def without_checksum(text: str) -> dict[str, Any]:
    """Return the record in a JSON text, without its checksum; a record that has none is not compared.

    Raises ValueError if it is damaged, and TypeError if it is no JSON object.
    """
    record = json.loads(text)
    if not isinstance(record, dict):
        raise TypeError("no JSON object")
    if record.pop(NAME, None) in (None, digest(record)):
        return record
    raise ValueError("the checksum is another")
