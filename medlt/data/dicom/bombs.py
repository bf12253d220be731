"""Recognises data that inflate to far more than their file: a few kilobytes can fill a machine's memory."""

from __future__ import annotations

import warnings
import zlib
from io import BytesIO

from pydicom import filereader
from pydicom.uid import DeflatedExplicitVRLittleEndian

LIMIT_INFLATED_BYTES = 2**30


def inflates_beyond_limit(raw: bytes) -> bool:
    """Return whether a deflated data set inflates beyond the limit; it is inflated in pieces and discarded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            at = _deflated_from(raw)
    except Exception:  # pydicom fails in the same way, and then inflates nothing
        return False
    return at is not None and inflated_size(raw[at:]) > LIMIT_INFLATED_BYTES


def _deflated_from(raw: bytes) -> int | None:
    """Return the offset at which pydicom starts to inflate; None if it does not.

    Uses pydicom's own steps: a crafted file could make any other parser disagree with them.
    """
    stream = BytesIO(raw)
    filereader.read_preamble(stream, force=True)
    meta = filereader._read_file_meta_info(stream)
    filereader._read_command_set_elements(stream)
    return stream.tell() if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian else None


def inflated_size(deflated: bytes) -> int:
    """Return the number of inflated bytes, counted to just above the limit or up to a damaged place."""
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while size <= LIMIT_INFLATED_BYTES and not inflater.eof:
            piece = inflater.decompress(deflated, 2**24)
            deflated = inflater.unconsumed_tail
            if not piece:
                break
            size += len(piece)
    except zlib.error:
        return size
    return size
