"""What the parts of an audit found, as one record and as tables; nothing in either names a patient.

The conclusion is as strong as the weakest part: a failed one is named; parts that could not conclude are named too, and
silence on them is not absence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
import pandas as pd

from medlt.privacy.audit.copies import CopySearch
from medlt.privacy.audit.membership import Membership
from medlt.privacy.audit.reidentify import Reidentification
from medlt.types import InputError


class AuditPart(Protocol):
    """What every part of an audit tells; a dataclass, whose further fields are its numbers."""

    @property
    def passed(self) -> bool | None:
        """True: no leak found; False: found; None: cannot conclude."""
        ...

    @property
    def sentence(self) -> str:
        """The result in words."""
        ...


def result(name: str, part: AuditPart) -> dict[str, Any]:
    """Return {"name", "sentence", "passed": true | false | null} and every number of a part, plain enough for JSON."""
    values = {one.name: getattr(part, one.name) for one in fields(part)}  # type: ignore[arg-type]
    kept = {k: v for k, v in values.items() if k not in ("images", "patients") or not isinstance(v, pd.DataFrame)}
    numbers = {k: _plain(v) for k, v in kept.items() if k != "name"}
    return {"name": name, "sentence": part.sentence, "passed": part.passed} | getattr(part, "counts", {}) | numbers


def _plain(value: Any) -> Any:
    """Return numbers, text, lists and dicts only; what is not finite becomes null."""
    if isinstance(value, pd.DataFrame):
        return [_plain(row) for row in value.reset_index().to_dict("records")]
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def summary(parts: Mapping[str, AuditPart]) -> dict[str, Any]:
    """Return {"results": one a part, in order, "conclusion": a sentence}.

    Raises InputError where nothing was audited.
    """
    if not parts:
        raise InputError("an audit of nothing; ask for copies, membership, re-identification or canaries")
    told = [result(name, part) for name, part in parts.items()]
    failed = [one["name"] for one in told if one["passed"] is False]
    silent = [one["name"] for one in told if one["passed"] is None]
    words = [f"Leaks were found ({', '.join(failed)})."] if failed else []
    words += [f"Nothing can be concluded from: {', '.join(silent)}."] if silent else []
    if not words:
        words = ["None of these attacks found a leak; others may. An audit bounds privacy loss from below only."]
    return {"results": told, "conclusion": " ".join(words)}


def tables(parts: Mapping[str, AuditPart]) -> dict[str, pd.DataFrame]:
    """Return tables to be written as NAME.parquet: `near_copies` (uid, nearest train row), `plants`, `membership`, and
    so on.

    Training images are row numbers of what was screened; patients are numbered in no order that can be read back
    without the collection.
    """
    out: dict[str, pd.DataFrame] = {}
    for name, part in parts.items():
        if isinstance(part, CopySearch):
            out |= {name: part.images, f"{name}_plants": part.plants}
        elif isinstance(part, Membership):
            out |= {name: part.images, f"{name}_rates": part.rates.reset_index()}
        elif isinstance(part, Reidentification):
            out[name] = part.images
    return out
