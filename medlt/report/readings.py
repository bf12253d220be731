"""What readers answered and what `medlt check` concluded, as the report shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medlt.checks.outcome import read_check
from medlt.review.results import ALL, ReviewResults, review_results, run_rows

ROWS = (
    ("right about real or synthetic (0.5: guessing)", "origin", "all"),
    ("synthetic images recognised", "origin", "synthetic"),
    ("real images called plausible", "plausibility", "real"),
    ("synthetic images called plausible", "plausibility", "synthetic"),
    ("agreement with labels, real images", "presence", "real"),
    ("agreement with labels, synthetic images", "presence", "synthetic"),
)
"""What the table says, and the question and kind of its rate."""


def readings(folder: Path, real_images: bool = True) -> dict[str, Any] | None:
    """Return rates, agreement and images of readers, and the conclusions of checks; None without either.

    Without `real_images` it names synthetic images alone. Raises InputError for a damaged file.
    """
    read, checked = review_results(folder), read_check(folder)
    if (read is None or not read.readers) and checked is None:
        return None
    known = read if read is not None and read.readers else None
    return {
        "readers": dict(known.readings) if known else {},
        "rates": _rates(known) if known else [],
        "findings": _findings(known) if known else [],
        "kappas": known.kappas.to_dict("records") if known else [],
        "named": _named(known, folder, real_images) if known else [],
        "checks": [] if checked is None else [vars(one) for one in checked.outcomes],
    }


def _named(read: ReviewResults, folder: Path, real_images: bool) -> list[dict[str, Any]]:
    """Return the images that readers reject, or contradict the labels of."""
    rows = [row for table in (read.rejected, read.contradictions) for row in table.to_dict("records")]
    known = None if real_images else run_rows(folder)
    made = set() if known is None else set(known.index[known["synthetic"].fillna(False).astype(bool)])
    return [{str(key): value for key, value in row.items()} for row in rows if real_images or row["uid"] in made]


def _rates(read: ReviewResults) -> list[dict[str, Any]]:
    """Return the rates over all readers; with several also of each."""
    names = [ALL, *(read.readers if len(read.readers) > 1 else ())]
    rows = []
    for title, question, kind in ROWS:
        for name in names:
            if (row := read.rate(question, kind=kind, reader=name)) is not None:
                rows.append({"title": title, **row.to_dict()})
    return rows


def _findings(read: ReviewResults) -> list[dict[str, Any]]:
    """Return the agreement with labels of each finding, over all readers."""
    table = read.rates
    at = (table["question"] == "presence") & (table["reader"] == ALL) & (table["finding"] != ALL)
    return [dict(row) for row in table[at & (table["kind"] != ALL)].to_dict("records")]
