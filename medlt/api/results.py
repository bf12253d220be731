"""Typed results of an experiment and of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from medlt.records import without_checksum
from medlt.types import InputError


@dataclass(frozen=True)
class Verdict:
    """The outcome of an experiment. Print it for one sentence.

    verdict: helps, no evidence, harms, cannot see or no verdict; difference, low, high: tail macro AP of `arm` less
    that of `control`, with its 95 % interval; smallest: the least gain that these test images and seeds would have
    shown. Numbers are None where nothing could be compared.
    """

    verdict: str
    sentence: str
    arm: str | None
    control: str | None
    difference: float | None
    low: float | None
    high: float | None
    smallest: float | None

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a verdict.json. Raises InputError for a damaged one."""
        record = read_json(file)
        compared = record.get("comparison") or {}
        numbers = {name: compared.get(name) for name in ("arm", "control", "difference", "low", "high")}
        return cls(
            str(record.get("verdict")), str(record.get("sentence", "")), smallest=record.get("smallest"), **numbers
        )

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit measured. Print it for its conclusion.

    passed: whether no test shows a leak, None where one could not be made; results: one row a test, with columns name,
    passed and sentence; record: all of audit.json.
    """

    passed: bool | None
    conclusion: str
    results: pd.DataFrame
    record: Mapping[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the audit of audit.json's contents."""
        rows = [(one["name"], one["passed"], one["sentence"]) for one in record["results"]]
        outcomes = [passed for _, passed, _ in rows]
        passed = False if False in outcomes else None if None in outcomes else True
        table = pd.DataFrame(rows, columns=["name", "passed", "sentence"])
        return cls(passed, str(record["conclusion"]), table, dict(record))

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read an audit.json. Raises InputError for a damaged one."""
        try:
            return cls.of(read_json(file))
        except (KeyError, TypeError):
            raise InputError(f"{file.absolute()}: damaged; run `medlt audit` again") from None

    def __str__(self) -> str:
        return self.conclusion

    def __repr__(self) -> str:
        return f"Audit(passed={self.passed}, {len(self.results)} tests)"


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object of a run folder. Raises InputError for a damaged one."""
    try:
        return without_checksum(file.read_text())
    except (ValueError, TypeError):
        raise InputError(f"{file.absolute()}: damaged; remove it, and run the same command again") from None
