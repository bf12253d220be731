"""View, sex and age of an image as numbers, in which unknown is a value of its own.

| attribute | columns | meaning |
|---|---|---|
| view | 5 | one of: unknown, PA, AP, frontal (PA or AP), lateral |
| sex | 3 | one of: unknown, female, male |
| age | 2 | unknown; (age - 50) / 25 in years, 0 if unknown |

A missing key, None, NaN, "" and any other word are unknown, and so is an age below 0 or above 120 years.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medlt.diffusion.backbone import About, Conditioner
from medlt.diffusion.losses import Rows
from medlt.training.settings import WHOLE, BatchPart

VIEWS = {"pa": "PA", "ap": "AP", "frontal": "frontal"} | dict.fromkeys(("lateral", "lat", "ll", "rl"), "lateral")
SEXES = dict.fromkeys(("m", "male", "man"), "male") | dict.fromkeys(("f", "female", "woman"), "female")
VALUES = {"view": ("PA", "AP", "frontal", "lateral"), "sex": ("female", "male")}
WIDTHS = {"view": 5, "sex": 3, "age": 2}
"""The number of columns of each attribute."""
ATTRIBUTES = tuple(WIDTHS)
OLDEST, MIDDLE, SPREAD = 120.0, 50.0, 25.0
"""Largest age that is believed; centre and unit of ages, years."""
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0, "": 1.0}


def text_of(about: About, key: str) -> str:
    """Return a value as text; "" for None, NaN, NA and blanks."""
    text = str(about.get(key, "")).strip()
    return "" if text.lower() in ("none", "nan", "<na>", "nat") else text


def years(age: str) -> float:
    """Return an age, given as a number of years or a DICOM age string such as 045Y (PS3.5, 6.2); NaN if unknown."""
    read = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([DWMY]?)", age, re.IGNORECASE)
    value = float(read[1]) / _PER_YEAR[read[2].upper()] if read else math.nan
    return value if 0 <= value <= OLDEST else math.nan


def view_of(about: About) -> str:
    """Return PA, AP, frontal, lateral, or "" if unknown."""
    return VIEWS.get(text_of(about, "view").lower(), "")


def sex_of(about: About) -> str:
    """Return female, male, or "" if unknown."""
    return SEXES.get(text_of(about, "sex").lower(), "")


def _columns(name: str, about: About) -> list[float]:
    """Return the columns of one attribute of a row."""
    if name == "age":
        age = years(text_of(about, "age"))
        return [1.0, 0.0] if math.isnan(age) else [0.0, (age - MIDDLE) / SPREAD]
    value = view_of(about) if name == "view" else sex_of(about)
    return [float(value == one) for one in ("", *VALUES[name])]


def encode(names: Sequence[str], about: Sequence[About], rows: int) -> Tensor:
    """Return the columns of these attributes, float32 [rows,sum of widths].

    `about` has one entry per row, or none: then all is unknown. Raises ValueError for another number.
    """
    if about and len(about) != rows:
        raise ValueError(f"{len(about)} attributes for {rows} rows; give none, or one for each row")
    missing: dict[str, Any] = {}
    given = about or [missing] * rows
    values = [[column for name in names for column in _columns(name, one)] for one in given]
    return torch.tensor(values, dtype=torch.float32).reshape(rows, width(names))


def width(names: Sequence[str]) -> int:
    """Return the number of columns of these attributes."""
    return sum(WIDTHS[name] for name in names)


def forget(rows: Rows, condition: Conditioner, share: float, rng: torch.Generator, part: BatchPart = WHOLE) -> Rows:
    """Return the rows with each attribute that `condition` encodes removed from this share of them.

    It is drawn for the whole batch of which the rows are `part`. For a conditioner without attributes, or if nothing is
    known of the rows, nothing is drawn.
    """
    names: tuple[str, ...] = getattr(condition, "attributes", ())
    if not names or not rows.about:
        return rows
    gone = part.take(torch.rand((len(rows.about) * part.of, len(names)), generator=rng) < share).tolist()
    hidden = [{name for name, out in zip(names, row, strict=True) if out} for row in gone]
    about = [{key: one[key] for key in one if key not in out} for one, out in zip(rows.about, hidden, strict=True)]
    return replace(rows, about=about)
