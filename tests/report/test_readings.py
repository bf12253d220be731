"""The section on readers and checks: there once somebody has read or checked, with the numbers of the results."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from medlt.checks.outcome import CheckSummary, outcome
from medlt.report.html import write_report
from medlt.report.readings import readings
from medlt.review.answers import ReaderAnswer, as_csv
from medlt.types import CheckResult


def answer(uid: str, origin: str, presence: str, comment: str = "") -> ReaderAnswer:
    return ReaderAnswer(0, uid, "Pneumothorax", origin, "implausible" if comment else "plausible", presence, comment)


def test_a_run_that_nobody_read_or_checked_has_no_section(augmented: Path) -> None:
    assert readings(augmented) is None
    assert 'id="readings"' not in write_report(augmented).read_text()


def test_the_section_holds_rates_images_and_conclusions(
    augmented: Path, known: SimpleNamespace, page_of: Callable[..., Any]
) -> None:
    (augmented / "review").mkdir()
    anna = [answer("s0000", "real", "present"), answer("s0001", "synthetic", "absent", known.hostile),
            answer("r0150", "real", "absent")]  # fmt: skip
    (augmented / "review" / "anna.csv").write_bytes(as_csv(anna))
    rows = [("", CheckResult("flat", "s0001", 0.0, 0.02, False, "flat"))]
    CheckSummary(14, (outcome("flat", rows, "no image is flat", "1 of 1 is flat"),)).write(augmented)
    text = write_report(augmented).read_text()
    made = page_of(augmented)
    assert known.hostile not in text
    cells = made.rows["readings"]
    assert ["synthetic images recognised", "all", "1", "2", "0.50", "0.01 to 0.99"] in cells
    assert ["agreement with labels, synthetic images", "all", "1", "2", "0.50", "0.01 to 0.99"] in cells
    assert [row[1] for row in cells if row[0] == "Pneumothorax"] == ["real", "synthetic"]
    assert ["s0001", "anna", "Pneumothorax", "implausible", known.hostile] in cells
    assert ["flat", "failed", "1", "1", "1 of 1 is flat"] in cells
