"""Writes the tables of a conversion from the journal, in an order that does not depend on the workers."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.csv_text import write_rows
from medlt.data.columns import IDENTIFIERS
from medlt.data.convert.filters import UNLABELLED
from medlt.data.convert.journal import Journal
from medlt.data.convert.objects import OBJECT_COLUMNS
from medlt.data.convert.places import Places
from medlt.data.convert.plausibility import DOUBTS
from medlt.data.convert.reasons import HINTS, kind_of_reason
from medlt.data.convert.scan import path_id
from medlt.files import atomic

COLUMNS = (
    *("uid", "path", "patient_id", "view", "modality", "body_part", "laterality", "sex", "age"),
    *("study_uid", "series_uid", "sop_uid", "accession", "study_date", "study_time", "sop_class"),
    *("presentation_intent", "procedure", "procedure_step", "procedure_code", "view_code", "orientation_code"),
    *("manufacturer", "model", "orientation", "photometric", "rows", "columns", "bits_stored", "frames", "frame"),
    *("row_spacing_mm", "column_spacing_mm", "transfer_syntax", "preset", "format", "quality", "out_rows"),
    *("out_columns", "window", "scale", "offset", "notes", "blake3_in", "sha256_out", "bytes_in", "bytes", "versions"),
    "source",
)


_NUMBERS = ("quality", "scale", "offset", "row_spacing_mm", "column_spacing_mm")
_COUNTS = ("rows", "columns", "bits_stored", "frames", "frame", "out_rows", "out_columns", "bytes_in", "bytes")
_AT_ONCE = 2000


@dataclass
class Tally:
    """Counts and short records of all lines, of which there may be millions.

    `converted` holds (uid of its first image, offset of its line) for each file with images, `objects` (source,
    offset of its line).
    """

    converted: list[tuple[str, int]] = field(default_factory=list)
    objects: list[tuple[str, int]] = field(default_factory=list)
    images: int = 0
    duplicates: list[tuple[str, str, str]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    seen: dict[bytes, str] = field(default_factory=dict)
    doubts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {"transfer_syntax": Counter(), "modality": Counter()}
    )

    def add(self, source: str, line: dict[str, Any], at: int) -> None:
        """Count one file; lines must come in the order of file names, so that the first of two equal files is fixed."""
        rows, reason = line["rows"], line["reason"]
        self.dropped.update(line["owned"].get("dropped", {}))
        if reason:
            self.failures.append((source, reason))
            if line["listed"]:
                self.objects.append((source, at))
        elif self._first("file", uid := rows[0]["uid"], uid) is not None:
            self.duplicates.append((source, uid, "file"))
            self.failures.append((source, "duplicate"))
        else:
            self._compare(source, "sop_uid", rows[0]["sop_uid"], uid)
            self.converted.append((uid, at))
            for row in rows:
                self._count(source, row)

    def _count(self, source: str, row: dict[str, Any]) -> None:
        """Count one image."""
        self._compare(source, "pixels", row["sha256_out"], row["uid"])
        self.images += 1
        self.doubts.update(note for note in row["made_notes"] if note in DOUBTS)
        self.unlabelled += UNLABELLED in row["notes"]
        for name, counter in self.counts.items():
            counter[row[name]] += 1

    def _compare(self, source: str, kind: str, value: str, uid: str) -> None:
        """Record a duplicate if an earlier image has this value."""
        if value and (other := self._first(kind, value, uid)) is not None:
            self.duplicates.append((source, other, kind))

    def _first(self, kind: str, value: str, uid: str) -> str | None:
        """Return the uid that had this value first; None if it is new, and record it."""
        key = hashlib.blake2b(f"{kind} {value}".encode(), digest_size=16).digest()
        known = self.seen.get(key)
        if known is None:
            self.seen[key] = uid
        return known

    def summary(self) -> dict[str, Any]:
        """Return the counts as values that JSON can hold."""
        kinds = Counter(kind_of_reason(code) for _, code in self.failures)
        return {
            "converted": self.images,
            "skipped": kinds["skipped"],
            "failed": kinds["failed"],
            "duplicates": _sorted(Counter(what for _, _, what in self.duplicates)),
            "reasons": _sorted(Counter(code for _, code in self.failures)),
            "implausible": _sorted(self.doubts),
            "unlabelled_body_part": self.unlabelled,
            "transfer_syntaxes": _sorted(self.counts["transfer_syntax"]),
            "modalities": _sorted(self.counts["modality"]),
        }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


CROSSWALK = ("uid", "status", "source", "file", *IDENTIFIERS, *(f"released_{name}" for name in IDENTIFIERS))
"""Columns of crosswalk.csv: status is released or quarantined, the last ten are identifiers of input and output."""


def write_tables(
    places: Places,
    journal: Journal,
    key: bytes,
    versions: str,
    tags: tuple[str, ...] = (),
    not_retrieved: Collection[str] = (),
) -> dict[str, Any]:
    """Write the manifest, failures.csv, duplicates.csv, objects.csv and the owner's tables; return the counts.

    `tags` are the DICOM keywords that are columns of the manifest too. The journal is read line by line, so memory
    holds a few dozen bytes per file.
    """
    tally = Tally()
    files = journal.last()
    for file in sorted(files):
        tally.add(path_id(file, key), journal.line(files[file]), files[file])
    missing = set(not_retrieved) - files.keys()
    tally.failures += [(path_id(file, key), "not_retrieved") for file in missing]
    _write_manifest(places.release / "manifest.parquet", tally.converted, journal, key, versions, tags)
    failures = [(source, code, kind_of_reason(code), HINTS[code]) for source, code in sorted(tally.failures)]
    _write_csv(places.out / "failures.csv", [("source", "reason", "kind", "hint"), *failures])
    _write_csv(places.out / "duplicates.csv", [("source", "same_as_uid", "what"), *sorted(tally.duplicates)])
    objects = ({"source": source, **journal.line(at)["listed"]} for source, at in sorted(tally.objects))
    listed = (tuple(row[name] for name in OBJECT_COLUMNS) for row in objects)
    _write_csv(places.out / "objects.csv", [OBJECT_COLUMNS, *listed])
    pairs = sorted((path_id(file, key), file) for file in files.keys() | missing)
    _write_csv(places.sources, [("source", "file"), *pairs], mode=0o600)
    if places.deidentified:
        _write_csv(places.crosswalk, _crosswalk(files, journal, key), mode=0o600)
        _write_csv(places.private / "dropped.csv", _dropped(tally.dropped), mode=0o600)
    return tally.summary()


def _crosswalk(files: dict[str, int], journal: Journal, key: bytes) -> Iterator[tuple[str, ...]]:
    """Yield the header and one row for each image that was released or held back, by file name."""
    yield CROSSWALK
    for file in sorted(files):
        line = journal.line(files[file])
        if owned := line["owned"]:
            original = [owned["original"][name] for name in IDENTIFIERS]
            row = line["rows"][0] if line["rows"] else {}
            released = [str(row.get(name, "")) for name in IDENTIFIERS]
            yield (owned["uid"], line["reason"] or "released", path_id(file, key), file, *original, *released)


def _dropped(counts: Counter[str]) -> Iterator[tuple[str, ...]]:
    """Yield the header and one row for each attribute that de-identification removed, by tag."""
    from pydicom.datadict import keyword_for_tag

    yield ("tag", "attribute", "removed")
    for tag, count in sorted(counts.items()):
        yield (f"({tag[:4]},{tag[4:]})", keyword_for_tag(int(tag, 16)), str(count))


def _write_manifest(
    path: Path, converted: list[tuple[str, int]], journal: Journal, key: bytes, versions: str, tags: tuple[str, ...]
) -> None:
    """Write the manifest in the order of the files' uids and of their frames, some thousand rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = _frame([], tags)
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema := pa.Schema.from_pandas(empty)) as writer:
        lines = (journal.line(at) for _, at in sorted(converted))
        rows = (_row(row, path_id(line["file"], key), versions) for line in lines for row in line["rows"])
        while some := list(islice(rows, _AT_ONCE)):
            writer.write_table(pa.Table.from_pandas(_frame(some, tags), schema=schema))


def _frame(rows: list[dict[str, Any]], tags: tuple[str, ...]) -> pd.DataFrame:
    """Return the manifest's columns with types that do not depend on the rows."""
    names = (*COLUMNS, *tags)
    types = dict.fromkeys(names, "str") | dict.fromkeys(_NUMBERS, "float64") | dict.fromkeys(_COUNTS, "int64")
    return pd.DataFrame(rows, columns=list(names)).astype(types).set_index("uid")


def _row(row: dict[str, Any], source: str, versions: str) -> dict[str, Any]:
    notes = "; ".join([*row["notes"], *row["made_notes"]])
    return row | {"notes": notes, "source": source, "versions": versions}


def _write_csv(path: Path, rows: Iterable[tuple[str, ...]], mode: int = 0o644) -> None:
    """Write a table; file names that are not UTF-8 keep their bytes. Paths may hold patient names, hence `mode`."""
    with atomic(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT, mode)
        with open(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            write_rows(file, rows)
