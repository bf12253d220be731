"""Opens DICOM files of unknown origin. A file that is not a readable radiograph raises Unreadable with a reason code.

Reasons (`Unreadable.code`): missing, not_dicom, not_an_image, no_pixels, too_large, codec_missing, truncated, corrupt.
"""

from __future__ import annotations

import copy
import os
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import filereader
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian
from pydicom.uid import ExplicitVRLittleEndian as ExplicitLE
from pydicom.uid import ImplicitVRLittleEndian as ImplicitLE

from medlt.data.dicom import codecs
from medlt.data.dicom.streams import frame_size, lacks_end_marker
from medlt.types import InputError

LIMIT_SAMPLES = 2**28  # 20 times a full-size radiograph
LIMIT_INFLATED_BYTES = 2**30
LIMIT_FILE_BYTES = 2**30
NO_IMAGE = frozenset({"SR", "PR", "KO", "DOC", "SEG", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "RTRECORD"})


class Unreadable(InputError):  # noqa: N818
    """A file that is not a usable image. `code` is the reason in failures.csv; the text is one line with a hint."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str]]:
        return Unreadable, (self.code, str(self))


def open_dicom(path: Path) -> tuple[Dataset, tuple[str, ...]]:
    """Return the data set and notes on repaired faults. Raises Unreadable before any pixel is decoded."""
    path = Path(path)
    return open_bytes(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return the file's bytes. Raises Unreadable if it cannot be opened or is larger than LIMIT_FILE_BYTES."""
    try:
        with Path(path).open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size > LIMIT_FILE_BYTES:
                excess = f"{size >> 20} MiB exceed the limit of {LIMIT_FILE_BYTES >> 20} MiB"
                raise Unreadable("too_large", f"{path}: {excess}; leave the file out")
            return handle.read()
    except OSError as error:
        reason = error.strerror or "cannot be opened"
        raise Unreadable("missing", f"{Path(path).absolute()}: {reason}; check the path and its permissions") from None


def open_bytes(raw: bytes, path: Path) -> tuple[Dataset, tuple[str, ...]]:
    """Do as `open_dicom` for a file in memory; `path` is its name in errors."""
    notes = () if raw[128:132] == b"DICM" else ("no preamble",)
    _refuse_bomb(raw, path)
    data, cut = _parsed(raw, path)
    _refuse_other_objects(data, path)
    _refuse_giant(data, path)
    if not any(k in data for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        if cut:
            raise Unreadable("truncated", f"{path}: the file ends before its pixel data; restore it from its source")
        raise Unreadable("no_pixels", f"{path}: no pixel data ({_kind(data)}), or cut before it; leave the file out")
    return data, notes + (("ends early",) if cut else ()) + _repair(data, path)


def stored_values(data: Dataset, path: Path) -> np.ndarray:
    """Return the stored values of the first frame, [H,W] or [H,W,3]: upper bits cleared, sign extended, YBR as RGB.

    PS3.5 section 8.1.1. The array may be a read-only view of the data set's bytes. Raises Unreadable on a missing
    codec, a truncated or damaged stream, and a stream whose size differs from the header.
    """
    syntax = data.file_meta.TransferSyntaxUID
    _refuse_without_codec(syntax, path)
    try:
        if syntax.is_encapsulated:
            frame = get_frame(data.PixelData, 0, number_of_frames=int(data.get("NumberOfFrames") or 1))
            _refuse_other_size(frame, data, path)
            values = codecs.direct(frame, data)
            return _cleared(_native(_decoded(data)) if values is None else values, data, 0)
        raw = _native(pixel_array(data, index=0, correct_unused_bits=False, view_only=True))
        return _cleared(raw, data, _bits_below(data))
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        raise _damaged(error, path) from None


def _decoded(data: Dataset) -> np.ndarray:
    """Decode with the preferred plugin, else with the first that can.

    pydicom refuses compressed pixels that happen to be as long as uncompressed ones; a sequence delimiter behind them
    (PS3.5 annex A.4) makes them longer without changing their meaning.
    """
    if data.file_meta.TransferSyntaxUID.is_encapsulated and len(data.PixelData) - _plain_length(data) in (0, 1):
        data = copy.copy(data)
        data.PixelData += b"\xfe\xff\xdd\xe0\0\0\0\0"
    return np.asarray(pixel_array(data, index=0, decoding_plugin=codecs.preferred(data)))


def _plain_length(data: Dataset) -> int:
    """Return the number of bytes of all frames, uncompressed."""
    bits = int(data.Rows) * int(data.Columns) * int(data.SamplesPerPixel) * int(data.BitsAllocated)
    return -(-bits // 8) * int(data.get("NumberOfFrames") or 1)


def _cleared(raw: np.ndarray, data: Dataset, shift: int) -> np.ndarray:
    """Return the values without the bits outside BitsStored, where old files keep overlays; `shift` bits lie below.

    Makes a copy only if there are such bits.
    """
    if not np.issubdtype(raw.dtype, np.integer):
        return raw
    allocated, stored = int(data.BitsAllocated), int(data.BitsStored)
    unused = allocated - stored
    limits = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if data.PixelRepresentation else (0, 2**stored - 1)
    if unused <= 0 or (not shift and raw.size and limits[0] <= raw.min() and raw.max() <= limits[1]):
        return raw
    return np.asarray((raw << (unused - shift)) >> unused)


def _native(values: np.ndarray) -> np.ndarray:
    """Return the same values in this machine's byte order."""
    return np.asarray(values, values.dtype.newbyteorder("="))


def _bits_below(data: Dataset) -> int:
    stored = int(data.get("BitsStored") or 0)
    high = data.get("HighBit")
    return 0 if high is None else max(0, int(high) + 1 - stored)


def _parsed(raw: bytes, path: Path) -> tuple[Dataset, bool]:
    """Return the data set, and whether the file ends inside an element.

    Hostile bytes may raise any exception, so all are caught; text that merely parses is refused.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = pydicom.dcmread(BytesIO(raw), force=True)
            plausible = "SOPClassUID" in data or ("Rows" in data and "Columns" in data) or "PatientID" in data
            plausible = plausible or "MediaStorageSOPClassUID" in data.file_meta
    except MemoryError:
        raise
    except Exception as error:
        if raw[128:132] == b"DICM":
            raise _damaged(error, path) from None
        plausible = False
    if not plausible:
        raise Unreadable("not_dicom", f"{path}: neither DICOM nor PNG, JPEG or NIfTI; leave the file out")
    return data, any("End of file" in str(warning.message) for warning in caught)


def _damaged(error: Exception, path: Path) -> Unreadable:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    code = "truncated" if "less than expected" in reason or "End of" in reason else "corrupt"
    return Unreadable(code, f"{path}: damaged DICOM ({reason}); restore the file from its source")


def _kind(data: Dataset) -> str:
    uid = data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "no SOP class"
    return str(UID(str(uid)).name)


def _refuse_other_objects(header: Dataset, path: Path) -> None:
    if str(header.get("Modality", "")) in NO_IMAGE or "DirectoryRecordSequence" in header:
        raise Unreadable("not_an_image", f"{path}: a {_kind(header)}, not an image; leave the file out")


def _refuse_giant(header: Dataset, path: Path) -> None:
    """Raise Unreadable if Rows x Columns x frames x samples of the header exceed the limit."""
    try:
        sides = [int(header.get(k) or 1) for k in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    except (TypeError, ValueError) as error:
        raise _damaged(error, path) from None
    if np.prod(np.array(sides, dtype=object)) > LIMIT_SAMPLES:
        size = " x ".join(map(str, sides))
        raise Unreadable("too_large", f"{path}: {size} samples exceed the limit of {LIMIT_SAMPLES}; leave the file out")


def _refuse_bomb(raw: bytes, path: Path) -> None:
    """Raise Unreadable if a deflated data set inflates beyond the limit; it is inflated in pieces and discarded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            at = _deflated_from(raw)
    except Exception:  # pydicom fails in the same way, and then inflates nothing
        return
    if at is not None and _inflated_size(raw[at:]) > LIMIT_INFLATED_BYTES:
        limit = f"more than {LIMIT_INFLATED_BYTES >> 20} MiB when inflated"
        raise Unreadable("too_large", f"{path}: {limit}; leave the file out")


def _deflated_from(raw: bytes) -> int | None:
    """Return the offset at which pydicom starts to inflate; None if it does not.

    Uses pydicom's own steps: a crafted file could make any other parser disagree with them.
    """
    stream = BytesIO(raw)
    filereader.read_preamble(stream, force=True)
    meta = filereader._read_file_meta_info(stream)
    filereader._read_command_set_elements(stream)
    return stream.tell() if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian else None


def _inflated_size(deflated: bytes) -> int:
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


def _refuse_other_size(frame: bytes, data: Dataset, path: Path) -> None:
    """Raise Unreadable if the stream's header has another size than the data set: a bomb, or foreign pixels."""
    if lacks_end_marker(frame) and not codecs.whole_without_end(frame):
        raise Unreadable("truncated", f"{path}: its JPEG stream is cut short; restore the file from its source")
    expected, size = (int(data.Rows), int(data.Columns)), frame_size(frame[:65536])
    if size is not None and size != expected:
        sizes = f"the compressed stream is {size[0]} x {size[1]}, the header has {expected[0]} x {expected[1]}"
        raise Unreadable("corrupt", f"{path}: {sizes}; restore the file from its source")


def _repair(data: Dataset, path: Path) -> tuple[str, ...]:
    """Set a missing transfer syntax, and an invalid frame count to 1; return notes."""
    notes: list[str] = []
    if "TransferSyntaxUID" not in data.file_meta:
        data.file_meta.TransferSyntaxUID = _assumed_syntax(data, path)
        notes.append("no transfer syntax")
    frames: Any = data.get("NumberOfFrames", 1)
    if frames in (None, "") or int(frames) < 1:
        data.NumberOfFrames = 1
        notes.append("no frame count")
    elif int(frames) > 1:
        notes.append(f"first of {int(frames)} frames")
    if _has_excess_pixels(data):
        notes.append("more pixel data than the header declares")
    return tuple(notes)


def _has_excess_pixels(data: Dataset) -> bool:
    """Return whether uncompressed pixels are longer than declared, plus one padding byte (PS3.5 8.1.1)."""
    if "PixelData" not in data or data["PixelData"].is_undefined_length:
        return False
    sides = [int(data.get(k) or 1) for k in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames")]
    bits = int(np.prod(np.array(sides, dtype=object))) * int(data.get("BitsAllocated") or 8)
    return len(data.PixelData) > (bits + 7) // 8 + 1


def _assumed_syntax(data: Dataset, path: Path) -> UID:
    """Return the uncompressed syntax that pydicom detected. Raises Unreadable on a compressed stream (PS3.10)."""
    if "PixelData" in data and data["PixelData"].is_undefined_length:
        raise Unreadable("corrupt", f"{path}: compressed, but without a transfer syntax; export the file again")
    implicit, little = data.original_encoding
    return ImplicitLE if implicit else ExplicitLE if little else ExplicitVRBigEndian


def _refuse_without_codec(syntax: UID, path: Path) -> None:
    codecs.register()
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        hint = "convert the file to another transfer syntax"
        raise Unreadable("codec_missing", f"{path}: transfer syntax {syntax.name} is not supported; {hint}") from None
    if not decoder.is_available:
        needed = " ".join(codecs.packages(syntax))
        raise Unreadable("codec_missing", f"{path}: no decoder for {syntax.name}; run: pip install {needed}")
