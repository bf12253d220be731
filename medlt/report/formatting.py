"""Formats numbers alike in every form of the report, and loads its templates."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

NONE = "–"
SCRIPT = ("page", "tables", "answers", "viewer", "gallery")
"""The files of the page's script, in their order: the last one starts it."""


def number(value: object, digits: int = 3) -> str:
    """Return a number as text: integers whole, others to `digits`, a dash for None and NaN."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return NONE if value is None else str(value)
    real = float(value)
    if not math.isfinite(real):
        return NONE
    return f"{real:.0f}" if hasattr(value, "__index__") else f"{real:.{digits}f}"


def beside_limit(value: float, limit: float) -> tuple[str, str]:
    """Return a value and its limit with three digits, or as many, up to six, as show on which side of it the value is.

    Whole numbers have none.
    """
    if all(math.isfinite(one) and float(one).is_integer() for one in (value, limit)):
        return number(value, 0), number(limit, 0)
    allowed = abs(value - limit) / 10 or 1.0
    digits = next((n for n in range(3, 6) if not max(abs(round(x, n) - x) for x in (value, limit)) > allowed), 6)
    return number(value, digits), number(limit, digits)


def signed(value: float | None) -> str:
    """Return a difference to three digits with its sign. The sign stays if the value rounds to zero: it decides."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}") if value else "0.000"


def interval(row: Mapping[str, Any] | None) -> str:
    """Return a difference with its interval: `+0.012 [−0.003, +0.027]`; a dash for no difference."""
    if row is None or signed(row["difference"]) == NONE:
        return NONE
    if signed(row["low"]) == NONE:
        return f"{signed(row['difference'])}, no interval"
    return f"{signed(row['difference'])} [{signed(row['low'])}, {signed(row['high'])}]"


def spread(cell: Mapping[str, Any] | None) -> str:
    """Return `mean ± sd` over seeds; the mean alone for one seed, a dash for none."""
    if cell is None or number(cell["mean"]) == NONE:
        return NONE
    return number(cell["mean"]) + (f" ± {number(cell['std'])}" if math.isfinite(cell["std"]) else "")


def gain(value: float | None) -> str:
    """Return a smallest visible gain to three digits; `over 1` for one that no metric can reach."""
    return "over 1" if value is not None and value > 1 else number(value)


def p_value(value: float | None) -> str:
    """Return a p value to three digits; `<0.001` for smaller ones."""
    if value is None or not math.isfinite(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


@dataclass(frozen=True)
class Script:
    """The script of a page, and the source expression that its content security policy allows (CSP 3, 2.3.1)."""

    text: Markup
    source: str


@cache
def script() -> Script:
    """Return the files of `SCRIPT` as one: our own code alone, so it is the one thing that is not escaped."""
    from markupsafe import Markup

    text = "\n".join((Path(__file__).parent / "script" / f"{name}.js").read_text() for name in SCRIPT)
    return Script(Markup(text), f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'")


@cache
def environment() -> Environment:
    """Return the templates of this folder, autoescaped; an undefined variable is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = FileSystemLoader(Path(__file__).parent)
    env = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"number": number, "signed": signed, "interval": interval, "p_value": p_value}
    env.filters["spread"] = lambda cell: spread(cell).replace("± ", "±\N{NO-BREAK SPACE}")
    env.filters["gain"] = gain
    env.filters["px"] = "{:.1f}".format
    env.tests["finite"] = lambda value: value is not None and math.isfinite(value)
    return env


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots and sorted."""
    joined: dict[str, Any] = {}
    for key, value in sorted(tree.items()):
        name = f"{prefix}{key}"
        joined |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return joined


def plain(value: object) -> Any:
    """Return values for JSON: numpy scalars as Python's, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_places(text: str) -> str:
    """Return the text of a config without folders of this machine: `/a/b/c.csv` becomes `…/c.csv`."""
    return re.sub(r"(?<![\w.…/])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\":]+[/\\])+", "…/", text)
