"""What readers' answers show: agreement between readers, the visual Turing rate, and agreement with the labels.

| rate | a reading counts as right if | without information |
|---|---|---|
| origin | the reader names the kind of the image, real or synthetic (visual Turing test) | 0.5 |
| plausibility | the reader calls the image plausible | - |
| presence | present where the label is 0.5 or more, else absent | 0.5 |

Answers "unsure" and unknown labels are left out. Each rate has the exact interval of `medlt.metrics.readers`, per
reader and over all readers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medlt.csv_text import unescaped
from medlt.metrics.readers import exact_share, kappa
from medlt.review.answers import FOLDER, QUESTIONS, read_answers
from medlt.types import InputError

ALL = "all"
KINDS = ("all", "real", "synthetic")
RATES = ("reader", "question", "kind", "finding", "count", "of", "value", "low", "high", "unsure")
KAPPAS = ("first", "second", "question", "images", "agreement", "kappa", "reason")
REJECTED = ("uid", "reader", "finding", "reason", "comment")
VERDICTS = ("accept", "reject")


@dataclass(frozen=True)
class ReviewResults:
    """Results of all readers.

    rates: columns `RATES`; the reader and the finding may be "all". kappas: columns `KAPPAS`, a row for each pair of
    readers and question. rejected: columns `REJECTED`, synthetic images that a reader calls implausible or rejects.
    contradictions: the same columns, images in which a reader contradicts the label. readings: the number of each
    reader.
    """

    readings: Mapping[str, int]
    rates: pd.DataFrame
    kappas: pd.DataFrame
    rejected: pd.DataFrame
    contradictions: pd.DataFrame

    @property
    def readers(self) -> tuple[str, ...]:
        """The names of the readers."""
        return tuple(self.readings)

    def rate(self, question: str, *, kind: str = ALL, finding: str = ALL, reader: str = ALL) -> pd.Series | None:
        """Return one row of `rates`, None if there is no such reading."""
        table = self.rates
        at = (table[["reader", "question", "kind", "finding"]] == [reader, question, kind, finding]).all(axis=1)
        return table[at].iloc[0] if at.any() else None

    def summary(self) -> dict[str, Any]:
        """Return all tables as lists of rows."""
        tables = {name: getattr(self, name).to_dict("records") for name in ("rates", "kappas", "rejected")}
        return {"readings": dict(self.readings), **tables, "contradictions": self.contradictions.to_dict("records")}


def read_readings(folder: Path, verdicts: Path | None = None) -> pd.DataFrame:
    """Return one row per answer: seed, uid, finding, origin, plausibility, presence, comment, reader, verdict.

    It reads all FOLDER/review/*.csv, and `verdicts`: a CSV with uid, verdict (accept or reject), comment and reader;
    where the reader is blank, it is the file's name. Raises InputError for a file that is none of these.
    """
    rows: list[dict[str, Any]] = []
    for file in sorted((Path(folder) / FOLDER).glob("*.csv")):
        rows += [{**vars(answer), "reader": file.stem, "verdict": ""} for answer in read_answers(file).values()]
    rows += [] if verdicts is None else _verdicts(verdicts)
    names = ("seed", "uid", "finding", *QUESTIONS, "comment", "reader", "verdict")
    return pd.DataFrame(rows, columns=list(names))


def _verdicts(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV of accepted and rejected images."""
    try:
        table = unescaped(pd.read_csv(file, dtype=str, keep_default_na=False))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as CSV: {str(error).splitlines()[0]}") from None
    if missing := [name for name in ("uid", "verdict") if name not in table]:
        raise InputError(f"{file}: has no column {missing[0]!r}; give uid, verdict (accept or reject) and comment")
    for number, row in enumerate(table.to_dict("records"), 2):
        verdict = str(row["verdict"]).strip().lower()
        if verdict not in ("", *VERDICTS):
            raise InputError(f"{file}, line {number}: verdict is {verdict!r}; write accept, reject or nothing")
        blank = dict.fromkeys(("finding", *QUESTIONS), "")
        yield {"seed": -1, "uid": str(row["uid"]), **blank, "comment": str(row.get("comment", "")),
               "reader": str(row.get("reader", "")).strip() or Path(file).stem, "verdict": verdict}  # fmt: skip


def results(readings: pd.DataFrame, rows: pd.DataFrame) -> ReviewResults:
    """Return the results of readings (see `read_readings`); rows: real and synthetic ones, index uid, with labels.

    rows need `synthetic`. Answers to images that are not among the rows are left out.
    """
    known = readings[readings["uid"].isin(rows.index)]
    known = known.assign(
        synthetic=rows["synthetic"].reindex(known["uid"]).fillna(False).astype(bool).to_numpy(),
        label=[_label(rows, uid, name) for uid, name in zip(known["uid"], known["finding"], strict=True)],
    )
    answered = known[(known[list(QUESTIONS)] != "").any(axis=1) | (known["verdict"] != "")]
    readers = sorted(answered["reader"].unique())
    return ReviewResults(
        {name: int((answered["reader"] == name).sum()) for name in readers},
        pd.DataFrame(list(_rates(known, readers)), columns=list(RATES)),
        pd.DataFrame(list(_kappas(known, readers)), columns=list(KAPPAS)),
        _rejected(known),
        _contradictions(known),
    )


def _label(rows: pd.DataFrame, uid: str, finding: str) -> float:
    """Return the label of an image as 1, 0 or NaN."""
    value = float(rows.at[uid, finding]) if finding in rows else np.nan
    return np.nan if np.isnan(value) else float(value >= 0.5)


def right(known: pd.DataFrame, question: str) -> pd.Series:
    """Return whether each answer to a question is right, see the module; without those that do not count."""
    answer = known[question]
    if question == "origin":
        return (answer == np.where(known["synthetic"], "synthetic", "real"))[answer != ""]
    if question == "plausibility":
        return (answer == "plausible")[answer != ""]
    counted = answer.isin(("present", "absent")) & known["label"].notna()
    return ((answer == "present") == (known["label"] == 1))[counted]


def _rates(known: pd.DataFrame, readers: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of rates that have a reading."""
    findings = [ALL, *sorted(set(known["finding"]) - {""})]
    for question in QUESTIONS:
        counted = right(known, question)
        part = known.loc[counted.index].assign(right=counted)
        for reader in [ALL, *readers]:
            yield from _rates_of(part, known, question, reader, findings if question == "presence" else [ALL])


def _rates_of(
    part: pd.DataFrame, known: pd.DataFrame, question: str, reader: str, findings: list[str]
) -> Iterator[tuple[Any, ...]]:
    for kind in KINDS:
        for finding in findings:
            chosen, whole = (_of(table, reader, kind, finding) for table in (part, known))
            if len(chosen):
                share = exact_share(list(chosen["right"]), list(chosen["uid"]))
                unsure = int((whole[question] == "unsure").sum())
                yield reader, question, kind, finding, *vars(share).values(), unsure


def _of(table: pd.DataFrame, reader: str, kind: str, finding: str) -> pd.DataFrame:
    """Return the readings of a reader, a kind and a finding; "all" of any."""
    at = pd.Series(True, table.index)
    at &= True if reader == ALL else table["reader"] == reader
    at &= True if kind == ALL else table["synthetic"] == (kind == "synthetic")
    return table[at & (True if finding == ALL else table["finding"] == finding)]


def _kappas(known: pd.DataFrame, readers: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield a row for each pair of readers and question that both answered."""
    for question in (*QUESTIONS, "verdict"):
        answered = known[known[question] != ""].drop_duplicates(["reader", "uid"], keep="last")
        table = answered.pivot(index="uid", columns="reader", values=question)
        for first, second in combinations([name for name in readers if name in table], 2):
            both = table[[first, second]].dropna()
            if not len(both):
                continue
            agreement = float((both[first] == both[second]).mean())
            value = kappa(list(both[first]), list(both[second]))
            reason = "both readers give one and the same answer" if np.isnan(value) else ""
            yield first, second, question, len(both), agreement, value, reason


def _rejected(known: pd.DataFrame) -> pd.DataFrame:
    """Return the synthetic images that a reader calls implausible, or rejects."""
    bad = known["synthetic"] & ((known["plausibility"] == "implausible") | (known["verdict"] == "reject"))
    reasons = np.where(known["verdict"] == "reject", "rejected", "implausible")
    return known.assign(reason=reasons).loc[bad, list(REJECTED)].sort_values(["uid", "reader"], ignore_index=True)


def _contradictions(known: pd.DataFrame) -> pd.DataFrame:
    """Return the images in which a reader contradicts the label."""
    counted = right(known, "presence")
    wrong = known.loc[counted.index[~counted]]
    labels = wrong["label"].map({1.0: "label present", 0.0: "label absent"})
    reasons = labels.astype(str) + ", read " + wrong["presence"]
    return wrong.assign(reason=reasons)[list(REJECTED)].sort_values(["uid", "reader"], ignore_index=True)


def run_rows(run: Path) -> pd.DataFrame | None:
    """Return the rows of a run's manifest, index uid, with the column `synthetic`; None if it has none."""
    file = Path(run) / "manifest.parquet"
    if not file.is_file():
        return None
    rows = pd.read_parquet(file)
    rows = rows.set_index("uid") if "uid" in rows else rows
    return rows.assign(synthetic=rows["synthetic"] if "synthetic" in rows else False)


def review_results(run: Path, verdicts: Path | None = None) -> ReviewResults | None:
    """Return the results of a run's readers, None if nobody has read; for report and scorecard.

    verdicts: as for `read_readings`. Raises InputError for a damaged file.
    """
    readings, rows = read_readings(Path(run), verdicts), run_rows(run)
    return None if readings.empty or rows is None else results(readings, rows)
