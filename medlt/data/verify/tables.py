"""Tables that accompany images: columns that lead back to the source, and identifiers that are no pseudonyms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from medlt.data.verify.header import PSEUDONYM

_DIGESTS = ("blake3_in", "bytes_in")
_PSEUDONYMS = ("patient_id", "accession")
_UIDS = ("study_uid", "series_uid", "sop_uid")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def table_file(path: Path) -> Iterator[str]:
    """Yield what a parquet table still holds. Never raises."""
    try:
        rows = pd.read_parquet(path).reset_index()
    except Exception as error:  # damaged bytes may raise any exception
        yield f"bytes that cannot be read as a table ({type(error).__name__})"
        return
    for column in map(str, rows.columns):
        texts = rows[column].dropna().astype("str")
        if column in _DIGESTS and texts.str.strip("0").astype(bool).any():
            yield f"column {column}, which describes the source's files"
        if column in _PSEUDONYMS and not texts.map(lambda text: not text or bool(PSEUDONYM.fullmatch(text))).all():
            yield f"column {column} with other values than medlt's pseudonyms"
        if column in _UIDS and not texts.map(lambda text: not text or text.startswith("2.25.")).all():
            yield f"column {column} with UIDs that are not under 2.25"
        if texts.map(lambda text: bool(_URL.search(text))).any():
            yield f"column {column} with addresses"
