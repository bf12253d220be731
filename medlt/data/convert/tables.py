"""The journal's lines to the tables a user reads; in an order that no worker decides."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.data.convert.journal import Journal
from medlt.data.convert.reasons import HINTS, kind_of_reason
from medlt.data.convert.scan import path_id
from medlt.files import atomic, write_table, write_text

COLUMNS = (
    *("uid", "path", "patient_id", "view", "modality", "body_part", "laterality", "sex", "age"),
    *("study_uid", "series_uid", "sop_uid", "accession", "photometric", "rows", "columns", "bits_stored", "frames"),
    *("row_spacing_mm", "column_spacing_mm", "transfer_syntax", "preset", "format", "quality", "out_rows"),
    *("out_columns", "window", "scale", "offset", "notes", "sha256_in", "sha256_out", "bytes_in", "bytes", "versions"),
    "source",
)


def write_tables(out: Path, journal: Journal, key: bytes, versions: str) -> dict[str, Any]:
    """manifest.parquet, failures.csv, duplicates.csv and sources.csv (for the owner only); what they add up to."""
    last = {line["file"]: line for line in journal.lines()}
    lines = [last[name] for name in sorted(last)]
    rows, duplicates, failures = [], [], []
    seen: dict[tuple[str, str], str] = {}
    for line in lines:
        source = path_id(line["file"], key)
        row = line["row"]
        if not line["reason"] and ("file", row["uid"]) in seen:
            duplicates.append((source, row["uid"], "file"))
            failures.append((source, "duplicate"))
        elif line["reason"]:
            failures.append((source, line["reason"]))
        else:
            duplicates += _same(row, source, seen)
            rows.append(_row(row, source, versions))
    _write(out, rows, duplicates, failures)
    _write_sources(out / "sources.csv", [(path_id(line["file"], key), line["file"]) for line in lines])
    return _summary(rows, duplicates, failures)


def _same(row: dict[str, Any], source: str, seen: dict[tuple[str, str], str]) -> list[tuple[str, str, str]]:
    """Earlier images with this one's instance UID or with its pixels; and remember this one."""
    found = []
    for kind, value in (("sop_uid", row["sop_uid"]), ("pixels", row["sha256_out"])):
        if value and (kind, value) in seen:
            found.append((source, seen[kind, value], kind))
        seen.setdefault((kind, value), row["uid"])
    seen["file", row["uid"]] = row["uid"]
    return found


def _row(row: dict[str, Any], source: str, versions: str) -> dict[str, Any]:
    notes = "; ".join([*row["notes"], *row["made_notes"]])
    return row | {"notes": notes, "source": source, "versions": versions}


def _write(out: Path, rows: list[Any], duplicates: list[Any], failures: list[Any]) -> None:
    manifest = pd.DataFrame(rows, columns=list(COLUMNS)).set_index("uid").sort_index()
    numbers = ("quality", "scale", "offset", "row_spacing_mm", "column_spacing_mm")
    write_table(out / "manifest.parquet", manifest.astype(dict.fromkeys(numbers, "float64")))
    told = [(source, code, kind_of_reason(code), HINTS[code]) for source, code in sorted(failures)]
    for name, columns, table in (
        ("failures.csv", ["source", "reason", "kind", "hint"], told),
        ("duplicates.csv", ["source", "same_as_uid", "what"], sorted(duplicates)),
    ):
        write_text(out / name, pd.DataFrame(table, columns=columns).to_csv(index=False))


def _write_sources(path: Path, pairs: list[tuple[str, str]]) -> None:
    """Which file a source id is. Paths may name patients, so: readable by the owner only."""
    with atomic(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600)
        with open(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("source", "file"), *sorted(pairs)])


def _summary(rows: list[Any], duplicates: list[Any], failures: list[Any]) -> dict[str, Any]:
    reasons = Counter(code for _, code in failures)
    kinds = Counter(kind_of_reason(code) for _, code in failures)
    return {
        "converted": len(rows),
        "skipped": kinds["skipped"],
        "failed": kinds["failed"],
        "duplicates": dict(sorted(Counter(what for _, _, what in duplicates).items())),
        "reasons": dict(sorted(reasons.items())),
        "transfer_syntaxes": dict(sorted(Counter(row["transfer_syntax"] for row in rows).items())),
        "modalities": dict(sorted(Counter(row["modality"] for row in rows).items())),
    }
