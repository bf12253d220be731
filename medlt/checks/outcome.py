"""The result of `medlt check`: a status and a conclusion for each check, and one row for each check and image.

FOLDER/check.json       status, counts, conclusion and uids of each check
FOLDER/check.parquet    check, uid, finding, value, limit, passed, reason
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from medlt.files import write_json, write_table
from medlt.types import CheckResult, InputError

Status: TypeAlias = Literal["passed", "failed", "not measured"]
MARK = "medlt check"
COLUMNS = ("check", "uid", "finding", "value", "limit", "passed", "reason")
FILES = ("check.json", "check.parquet")


@dataclass(frozen=True)
class CheckOutcome:
    """The outcome of one check: how many images it measured, the uids of those that failed, one line of conclusion."""

    check: str
    status: Status
    images: int
    conclusion: str
    uids: tuple[str, ...] = ()
    rows: tuple[tuple[str, CheckResult], ...] = field(default=(), repr=False)
    """(finding or "", result) of each image."""


@dataclass(frozen=True)
class CheckSummary:
    """The outcomes of all checks on `images` images."""

    images: int
    outcomes: tuple[CheckOutcome, ...]

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(one.status == "failed" for one in self.outcomes)

    def table(self) -> pd.DataFrame:
        """Return one row for each check and image, columns `COLUMNS`."""
        rows = [{**asdict(result), "finding": finding} for one in self.outcomes for finding, result in one.rows]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"passed": bool, "value": float, "limit": float})

    def record(self) -> dict[str, Any]:
        """Return the content of check.json."""
        names = ("check", "status", "images", "conclusion", "uids")
        checks = [{name: getattr(one, name) for name in names} for one in self.outcomes]
        return {"written_by": MARK, "images": self.images, "failed": self.failed, "checks": checks}

    def write(self, folder: Path) -> None:
        """Write check.parquet and check.json, in place of those of another call. Raises InputError as `read_check`."""
        read_check(folder)
        write_table(folder / "check.parquet", self.table())
        write_json(folder / "check.json", self.record())


def read_check(folder: Path) -> CheckSummary | None:
    """Return what `medlt check` wrote to a folder, without rows; None if it wrote nothing. For report and scorecard.

    Raises InputError if a file of that name is of another program.
    """
    files = [Path(folder) / name for name in FILES]
    if not any(file.exists() for file in files):
        return None
    try:
        record = json.loads(files[0].read_text())
        if record["written_by"] != MARK:
            raise ValueError
        outcomes = [CheckOutcome(**{**one, "uids": tuple(one["uids"])}) for one in record["checks"]]
        return CheckSummary(int(record["images"]), tuple(outcomes))
    except (OSError, ValueError, KeyError, TypeError):
        there = next(file for file in files if file.exists())
        raise InputError(f"{there}: was not written by medlt check; move it away, or give --out FOLDER") from None


def outcome(check: str, rows: Sequence[tuple[str, CheckResult]], good: str, bad: str) -> CheckOutcome:
    """Return the outcome of a check that fails if an image fails; the sentences may hold {failed} and {images}."""
    images = {result.uid for _, result in rows}
    uids = tuple(dict.fromkeys(result.uid for _, result in rows if not result.passed))
    sentence = (bad if uids else good).format(failed=len(uids), images=len(images))
    return CheckOutcome(check, "failed" if uids else "passed", len(images), sentence, uids, tuple(rows))


def not_measured(check: str, reason: str) -> CheckOutcome:
    """Return the outcome of a check that could not run."""
    return CheckOutcome(check, "not measured", 0, f"not measured: {reason}")
