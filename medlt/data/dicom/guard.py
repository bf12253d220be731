"""Opening what a folder really holds: what is no readable radiograph is refused with a reason, never a crash.

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
from medlt.data.dicom.streams import frame_size, no_end
from medlt.types import InputError

LIMIT_SAMPLES = 2**28  # 20 times a full-size radiograph
LIMIT_INFLATED_BYTES = 2**30
LIMIT_FILE_BYTES = 2**30
NO_IMAGE = frozenset({"SR", "PR", "KO", "DOC", "SEG", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "RTRECORD"})


class Unreadable(InputError):  # noqa: N818
    """A file that is no usable image. `code` is the reason for failures.csv; the text is one line with a hint."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str]]:
        return Unreadable, (self.code, str(self))


def open_dicom(path: Path) -> tuple[Dataset, tuple[str, ...]]:
    """The data set and notes on what was wrong but mended. Raises Unreadable before any pixel is decoded."""
    path = Path(path)
    return open_bytes(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises Unreadable if it cannot be opened or is larger than LIMIT_FILE_BYTES."""
    try:
        with Path(path).open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size > LIMIT_FILE_BYTES:
                told = f"{size >> 20} MiB exceed the limit of {LIMIT_FILE_BYTES >> 20} MiB"
                raise Unreadable("too_large", f"{path}: {told}; leave the file out")
            return handle.read()
    except OSError as error:
        reason = error.strerror or "cannot be opened"
        raise Unreadable("missing", f"{path}: {reason}; check the path and its permissions") from None


def open_bytes(raw: bytes, path: Path) -> tuple[Dataset, tuple[str, ...]]:
    """`open_dicom` for a file that is in memory; `path` is what errors call it."""
    notes = () if raw[128:132] == b"DICM" else ("no preamble",)
    _refuse_bomb(raw, path)
    data, cut = _parsed(raw, path)
    _refuse_other_objects(data, path)
    _refuse_giant(data, path)
    if not any(k in data for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        if cut:
            raise Unreadable("truncated", f"{path}: the file ends before its pixel data do; restore it from its source")
        raise Unreadable("no_pixels", f"{path}: no pixel data ({_kind(data)}), or cut before it; leave the file out")
    return data, notes + (("ends early",) if cut else ()) + _mend(data, path)


def stored_values(data: Dataset, path: Path) -> np.ndarray:
    """Stored values of the first frame, [H,W] or [H,W,3]: upper bits cleared, sign extended, YBR already RGB.

    PS3.5 section 8.1.1. The array may be a read-only view of the data set's bytes. Raises Unreadable on a missing
    codec, a truncated or a damaged stream, and a stream of another size than the header says.
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
    """By the plugin that is preferred, else by the first that can.

    pydicom refuses compressed pixels that happen to be as long as uncompressed ones; a sequence delimiter behind them
    (PS3.5 annex A.4) makes them longer and says nothing.
    """
    if data.file_meta.TransferSyntaxUID.is_encapsulated and len(data.PixelData) - _plain_length(data) in (0, 1):
        data = copy.copy(data)
        data.PixelData += b"\xfe\xff\xdd\xe0\0\0\0\0"
    return np.asarray(pixel_array(data, index=0, decoding_plugin=codecs.preferred(data)))


def _plain_length(data: Dataset) -> int:
    """Bytes of all frames uncompressed."""
    bits = int(data.Rows) * int(data.Columns) * int(data.SamplesPerPixel) * int(data.BitsAllocated)
    return -(-bits // 8) * int(data.get("NumberOfFrames") or 1)


def _cleared(raw: np.ndarray, data: Dataset, shift: int) -> np.ndarray:
    """Bits outside BitsStored dropped, as overlays once lived there; a copy only where there are such bits. `shift` is
    the number of bits below."""
    if not np.issubdtype(raw.dtype, np.integer):
        return raw
    allocated, stored = int(data.BitsAllocated), int(data.BitsStored)
    unused = allocated - stored
    limits = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if data.PixelRepresentation else (0, 2**stored - 1)
    if unused <= 0 or (not shift and raw.size and limits[0] <= raw.min() and raw.max() <= limits[1]):
        return raw
    return np.asarray((raw << (unused - shift)) >> unused)


def _native(values: np.ndarray) -> np.ndarray:
    """The same values in this machine's byte order."""
    return np.asarray(values, values.dtype.newbyteorder("="))


def _bits_below(data: Dataset) -> int:
    stored = int(data.get("BitsStored") or 0)
    high = data.get("HighBit")
    return 0 if high is None else max(0, int(high) + 1 - stored)


def _parsed(raw: bytes, path: Path) -> tuple[Dataset, bool]:
    """The data set, and whether the file ends inside an element. Hostile bytes may raise anything, so anything is
    caught; text that merely parses is refused."""
    try:
        with warnings.catch_warnings(record=True) as told:
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
    return data, any("End of file" in str(warning.message) for warning in told)


def _damaged(error: Exception, path: Path) -> Unreadable:
    told = (str(error) or type(error).__name__).splitlines()[0]
    code = "truncated" if "less than expected" in told or "End of" in told else "corrupt"
    return Unreadable(code, f"{path}: damaged DICOM ({told}); restore the file from its source")


def _kind(data: Dataset) -> str:
    uid = data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "no SOP class"
    return str(UID(str(uid)).name)


def _refuse_other_objects(header: Dataset, path: Path) -> None:
    if str(header.get("Modality", "")) in NO_IMAGE or "DirectoryRecordSequence" in header:
        raise Unreadable("not_an_image", f"{path}: a {_kind(header)}, not an image; leave the file out")


def _refuse_giant(header: Dataset, path: Path) -> None:
    """Rows x Columns x frames x samples against the cap, from the header alone."""
    try:
        sides = [int(header.get(k) or 1) for k in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    except (TypeError, ValueError) as error:
        raise _damaged(error, path) from None
    if np.prod(np.array(sides, dtype=object)) > LIMIT_SAMPLES:
        size = " x ".join(map(str, sides))
        raise Unreadable("too_large", f"{path}: {size} samples exceed the limit of {LIMIT_SAMPLES}; leave the file out")


def _refuse_bomb(raw: bytes, path: Path) -> None:
    """A deflated data set is inflated piecewise and thrown away, until it ends or passes the cap."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            at = _deflated_from(raw)
    except Exception:  # what cannot be parsed here cannot be parsed, and so not inflated, by pydicom either
        return
    if at is not None and _inflated_size(raw[at:]) > LIMIT_INFLATED_BYTES:
        limit = f"more than {LIMIT_INFLATED_BYTES >> 20} MiB when inflated"
        raise Unreadable("too_large", f"{path}: {limit}; leave the file out")


def _deflated_from(raw: bytes) -> int | None:
    """Where pydicom starts to inflate; None if it will not. Found by pydicom's own steps: any other reading of the
    file meta could be made to disagree with them."""
    stream = BytesIO(raw)
    filereader.read_preamble(stream, force=True)
    meta = filereader._read_file_meta_info(stream)
    filereader._read_command_set_elements(stream)
    return stream.tell() if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian else None


def _inflated_size(deflated: bytes) -> int:
    """Bytes after inflation, counted up to just past the cap; a damaged stream counts as far as it goes."""
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
    """Refuse a stream whose own header claims another size than the data set: a bomb, or somebody else's pixels."""
    if no_end(frame) and not codecs.whole_without_end(frame):
        raise Unreadable("truncated", f"{path}: its JPEG stream is cut short; restore the file from its source")
    said, size = (int(data.Rows), int(data.Columns)), frame_size(frame[:65536])
    if size is not None and size != said:
        told = f"the compressed stream is {size[0]} x {size[1]}, the header says {said[0]} x {said[1]}"
        raise Unreadable("corrupt", f"{path}: {told}; restore the file from its source")


def _mend(data: Dataset, path: Path) -> tuple[str, ...]:
    """Give a file without file meta its transfer syntax, and a nonsensical frame count the value 1."""
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
    if _more_than_told(data):
        notes.append("more pixel data than the header says")
    return tuple(notes)


def _more_than_told(data: Dataset) -> bool:
    """Whether uncompressed pixel data go on behind what the header speaks of, but for one byte that makes them even
    (PS3.5 8.1.1)."""
    if "PixelData" not in data or data["PixelData"].is_undefined_length:
        return False
    sides = [int(data.get(k) or 1) for k in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames")]
    bits = int(np.prod(np.array(sides, dtype=object))) * int(data.get("BitsAllocated") or 8)
    return len(data.PixelData) > (bits + 7) // 8 + 1


def _assumed_syntax(data: Dataset, path: Path) -> UID:
    """Uncompressed, in the encoding pydicom found. PS3.10 requires file meta, so a compressed stream is refused."""
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
        needed = "; ".join(decoder.missing_dependencies)
        raise Unreadable("codec_missing", f"{path}: {syntax.name} needs a codec that is not installed: {needed}")
