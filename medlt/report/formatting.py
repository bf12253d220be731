"""How numbers are told, in every form of the report, and the environment its templates are drawn in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

NONE = "–"


def number(value: object, digits: int = 3) -> str:
    """A number as shown: whole numbers whole, others to `digits`; a dash where there is none."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return NONE if value is None else str(value)
    real = float(value)
    if not math.isfinite(real):
        return NONE
    return f"{real:.0f}" if hasattr(value, "__index__") else f"{real:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference to three digits with its sign, kept even where it rounds to zero: the side of zero decides."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}") if value else "0.000"


def interval(row: Mapping[str, Any] | None) -> str:
    """A difference with its interval: `+0.012 [−0.003, +0.027]`; a dash where there is none."""
    if row is None or signed(row["difference"]) == NONE:
        return NONE
    return f"{signed(row['difference'])} [{signed(row['low'])}, {signed(row['high'])}]"


def spread(cell: Mapping[str, Any] | None) -> str:
    """`mean ± sd` over seeds; the mean alone where there is one seed, a dash where there is none."""
    if cell is None or number(cell["mean"]) == NONE:
        return NONE
    return number(cell["mean"]) + (f" ± {number(cell['std'])}" if math.isfinite(cell["std"]) else "")


def p_value(value: float | None) -> str:
    """A p value: three digits, never told as zero."""
    if value is None or not math.isfinite(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


@cache
def environment() -> Environment:
    """Templates of this folder: autoescaped, strict about what is undefined."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = FileSystemLoader(Path(__file__).parent)
    env = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    told = {"interval": interval, "spread": spread, "p_value": p_value}
    env.filters |= {"number": number, "signed": signed, "px": "{:.1f}".format, **told}
    env.tests["finite"] = lambda value: value is not None and math.isfinite(value)
    return env


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots and sorted."""
    told: dict[str, Any] = {}
    for key, value in sorted(tree.items()):
        name = f"{prefix}{key}"
        told |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return told


def plain(value: object) -> Any:
    """JSON without NaN: numpy scalars to Python's, what is not finite to null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
