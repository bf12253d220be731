"""What identifies an artifact of the store: a mapping of plain values, which JSON keeps as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any


def plain_key(value: Any) -> Any:
    """Return a key as JSON restores it. Raises TypeError for a value that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(name): plain_key(part) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return plain_key(asdict(value))
    if isinstance(value, list | tuple):
        return [plain_key(part) for part in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if hasattr(value, "dtype") and getattr(value, "shape", None) == () and type(value).__module__ == "numpy":
        return plain_key(value.item())
    raise TypeError(f"a key of the store holds a {type(value).__name__}; put a digest of its contents there")
