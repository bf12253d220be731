"""The actions of the standard on every attribute: DICOM PS3.15 Table E.1-1, edition 2026c, in actions.csv.

Letters (PS3.15 Table E.1-1a): D dummy value, Z zero length or dummy, X removed, K kept, C cleaned, U new UID.
The attribute's type in the IOD (PS3.3) resolves a compound (X/Z/D, X/D, X/Z, Z/D): type 1 takes the last letter,
type 2 takes Z, type 3 and attributes that are not in the IOD take the first. If the IOD or the level is unknown (an SOP
class outside `FAMILIES`, an item of a sequence), the last letter applies: nothing of the source stays, and any IOD
keeps what it requires. X/Z/U* is always U*: the items stay and the UIDs inside are replaced, so references stay valid.

Columns of actions.csv: tag, name, the Basic Profile's action, the two options' actions, and the types in the CR, DX
and SC IODs where the action is a compound. 50XX and 60XX stand for their repeating groups.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from medlt.names import did_you_mean
from medlt.types import InputError

EDITION = "2026c"
BASIC, DATES, CHARACTERISTICS, PIXELS = (
    "basic",
    "retain-dates-modified",
    "retain-patient-characteristics",
    "clean-pixel",
)
CODES = {
    BASIC: ("113100", "Basic Application Confidentiality Profile"),
    PIXELS: ("113101", "Clean Pixel Data Option"),
    DATES: ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
}
"""Option: code value and meaning, PS3.16 CID 7050."""
FAMILIES = {
    "1.2.840.10008.5.1.4.1.1.1": "cr",
    "1.2.840.10008.5.1.4.1.1.1.1": "dx",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "dx",
    "1.2.840.10008.5.1.4.1.1.7": "sc",
}
"""SOP class UID: column of actions.csv with the attribute types of its IOD."""


@dataclass(frozen=True)
class Profile:
    """The Basic Profile and the options applied with it; `options` holds the names given to `parse`."""

    options: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Return the profile of comma-separated names. Raises InputError on unknown names or without `basic`."""
        names = [name.strip() for name in text.split(",")]
        known = ", ".join(CODES)
        for name in names:
            if name not in CODES:
                private = name == "retain-safe-private"
                hint = "; private attributes are always removed" if private else did_you_mean(name, CODES)
                raise InputError(f"--deidentify {text}: {name!r} is not one of {known}{hint}")
        if BASIC not in names:
            raise InputError(f"--deidentify {text}: the options need the basic profile; give basic,{text}")
        return cls(frozenset(names))

    def __str__(self) -> str:
        return ",".join(name for name in CODES if name in self.options)

    def __contains__(self, option: object) -> bool:
        return option in self.options


@dataclass(frozen=True)
class Row:
    """One row of Table E.1-1. `types` maps cr, dx, sc to 1, 1C, 2, 2C, 3, or '' if the attribute is not in the IOD."""

    name: str
    basic: str
    dates: str
    characteristics: str
    types: Mapping[str, str]


@cache
def standard_table() -> Mapping[str, Row]:
    """Return Table E.1-1 by tag, eight upper-case hex digits or X."""
    kinds = ("cr", "dx", "sc")
    lines = (files(__package__) / "actions.csv").read_text(encoding="utf-8").splitlines()
    return {
        r["tag"]: Row(r["name"], r["basic"], r["dates"], r["characteristics"], {k: r[k] for k in kinds})
        for r in csv.DictReader(lines)
    }


@cache
def letters(profile: Profile, family: str | None) -> Mapping[int, str]:
    """Return one letter for every tag of the table, for a level of a data set; `family` None if types are unknown."""
    return {int(tag, 16): _letter(row, profile, family) for tag, row in standard_table().items() if "X" not in tag}


def _letter(row: Row, profile: Profile, family: str | None) -> str:
    """Return the letter of a row; C without a cleaner (patient state and the like) falls back on the Basic Profile."""
    if DATES in profile and row.dates:
        return row.dates
    if CHARACTERISTICS in profile and row.characteristics == "K":
        return "K"
    return settle(row.basic, row.types[family] if family else None)


def settle(action: str, kind: str | None) -> str:
    """Return the letter of a compound for an attribute of type `kind` (1, 1C, 2, 2C, 3, ''), None if unknown."""
    choices = action.split("/")
    if kind is None or kind.startswith("1") or choices[-1] == "U*":
        return choices[-1]
    if kind.startswith("2"):
        return "Z" if "Z" in choices else choices[-1]
    return choices[0]
