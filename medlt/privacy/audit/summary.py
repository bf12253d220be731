"""Results of an audit as one record and as tables, without names of patients.

The conclusion names the parts that failed, and the parts without a conclusion, which are no evidence of privacy.
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
    """Result of one part of an audit: a dataclass, whose other fields are its numbers."""

    @property
    def passed(self) -> bool | None:
        """True if no leak was detected, False if one was, None without a conclusion."""
        ...

    @property
    def sentence(self) -> str:
        """The result as a sentence."""
        ...


def result(name: str, part: AuditPart) -> dict[str, Any]:
    """Return name, sentence, passed (true, false or null) and all numbers of a part, as JSON types."""
    values = {one.name: getattr(part, one.name) for one in fields(part)}  # type: ignore[arg-type]
    kept = {k: v for k, v in values.items() if k not in ("images", "patients") or not isinstance(v, pd.DataFrame)}
    numbers = {k: _plain(v) for k, v in kept.items() if k != "name"}
    return {"name": name, "sentence": part.sentence, "passed": part.passed} | getattr(part, "counts", {}) | numbers


def _plain(value: Any) -> Any:
    """Return a value as numbers, text, lists and dicts; numbers that are not finite become None."""
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
    """Return {"results": one for each part, in order, "conclusion": a sentence}.

    Raises InputError for an audit without parts.
    """
    if not parts:
        raise InputError("the audit has no part; give copies, membership, re-identification or canaries")
    results = [result(name, part) for name, part in parts.items()]
    failed = [one["name"] for one in results if one["passed"] is False]
    silent = [one["name"] for one in results if one["passed"] is None]
    sentences = [f"Leaks were detected ({', '.join(failed)})."] if failed else []
    sentences += [f"Nothing can be concluded from: {', '.join(silent)}."] if silent else []
    if not sentences:
        sentences = [
            "None of these attacks detected a leak; others may. An audit gives a lower bound of privacy loss only."
        ]
    return {"results": results, "conclusion": " ".join(sentences)}


def tables(parts: Mapping[str, AuditPart]) -> dict[str, pd.DataFrame]:
    """Return the tables of an audit, to be written as NAME.parquet, such as `near_copies` and `membership`.

    Training images are row numbers of the search. The numbers of patients cannot be resolved without the collection.
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
