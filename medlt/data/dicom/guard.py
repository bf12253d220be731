"""Opens DICOM files of unknown origin. A file that is not a readable radiograph raises Unreadable with a reason code.

Reasons (`Unreadable.code`): missing, not_dicom, not_an_image, no_pixels, too_large, codec_missing, truncated, corrupt.
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian
from pydicom.uid import ExplicitVRLittleEndian as ExplicitLE
from pydicom.uid import ImplicitVRLittleEndian as ImplicitLE

from medlt.data.dicom import bombs, codecs, encapsulation, salvage
from medlt.data.dicom.attributes import NO_IMAGE_MODALITIES, reason_without_pixels
from medlt.data.dicom.cells import bits_below, cleared, has_excess, native, widen_packed
from medlt.data.dicom.displaytags import repair_display
from medlt.data.dicom.streams import frame_bits, frame_size, lacks_end_marker
from medlt.remote import AnyFile, RemoteFile, as_file
from medlt.types import InputError

LIMIT_SAMPLES = 2**28  # 20 times a full-size radiograph
LIMIT_FILE_BYTES = 2**30
MOST_REPAIRS = 32
BITS_DROPPED = "stored values beyond BitsStored, their upper bits were cleared"


class Unreadable(InputError):  # noqa: N818
    """A file that is not a usable image. `code` is the reason in failures.csv; the text is one line with a hint."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str]]:
        return Unreadable, (self.code, str(self))


def open_dicom(path: AnyFile) -> tuple[Dataset, tuple[str, ...]]:
    """Return the data set and notes on repaired faults. Raises Unreadable before any pixel is decoded."""
    return open_bytes(read_bytes(path), path)


def read_bytes(path: str | AnyFile) -> bytes:
    """Return the bytes of a file at a path or a URL.

    Raises Unreadable if it cannot be opened or is larger than LIMIT_FILE_BYTES, and InputError if a server cannot be
    used.
    """
    file = as_file(path)
    try:
        if isinstance(file, RemoteFile):
            _refuse_large(file.size(), file)
            return file.read_bytes()
        with file.open("rb") as handle:
            _refuse_large(os.fstat(handle.fileno()).st_size, file)
            return handle.read()
    except OSError as error:
        reason = error.strerror or ("no such object" if isinstance(file, RemoteFile) else "cannot be opened")
        raise Unreadable("missing", f"{file.absolute()}: {reason}; check the path and its permissions") from None


def _refuse_large(size: int, file: AnyFile) -> None:
    if size > LIMIT_FILE_BYTES:
        excess = f"{size >> 20} MiB exceed the limit of {LIMIT_FILE_BYTES >> 20} MiB"
        raise Unreadable("too_large", f"{file}: {excess}; leave the file out")


def open_bytes(raw: bytes, path: AnyFile, index: int = 0) -> tuple[Dataset, tuple[str, ...]]:
    """Do as `open_dicom` for a file in memory, with the display tags of a frame; `path` is its name in errors."""
    notes: tuple[str, ...] = () if raw[128:132] == b"DICM" else ("no preamble",)
    _refuse_bomb(raw, path)
    raw, data, ends, mended = _parsed_or_mended(raw, path)
    notes += mended
    _refuse_other_objects(data, path)
    _refuse_giant(data, path)
    if not _has_pixels(data):
        data, more = _salvaged(raw, data, ends, path)
        notes += more
    elif ends == "cut":
        notes += ("ends early",)
    return data, notes + _repair(data, path, index)


def stored_values(data: Dataset, path: AnyFile) -> np.ndarray:
    """Return the stored values of the first frame, as `frame` does, without the notes."""
    return frame(data, path)[0]


def frame(data: Dataset, path: AnyFile, index: int = 0, reduce: int = 1) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the stored values of a frame, counted from 0, [H,W] or [H,W,3], and notes on them.

    JPEG 2000 is decoded at 1/`reduce` (2 or 4) of its resolution, if that is possible. Upper bits are cleared, the sign
    is extended, YBR is RGB (PS3.5 section 8.1.1). The array may be a read-only view of the data set's bytes. Raises
    Unreadable on a missing codec, a truncated or damaged stream, and a stream whose size differs from the header.
    """
    syntax = data.file_meta.TransferSyntaxUID
    _refuse_without_codec(syntax, path)
    try:
        if syntax.is_encapsulated:
            stream = encapsulation.frame_stream(data, index)
            _refuse_other_size(stream, data, path)
            raw, shift = _decoded(stream, data, reduce), bits_below(data, frame_bits(stream[:65536]))
        else:
            raw = native(pixel_array(data, index=index, correct_unused_bits=False, view_only=True))
            shift = bits_below(data)
        values = cleared(raw, data, shift)
        dropped = (BITS_DROPPED,) if values is not raw and not shift else ()
        return values, encapsulation.which_frame(data, index) + dropped
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        raise _damaged(error, path) from None


def _decoded(frame: bytes, data: Dataset, reduce: int) -> np.ndarray:
    """Decode directly, else with the preferred plugin of pydicom, else with its first that can; all bits are kept."""
    values = codecs.direct(frame, data, reduce)
    if values is not None:
        return values
    alone = encapsulation.single_frame(data, frame)
    return native(pixel_array(alone, index=0, correct_unused_bits=False, decoding_plugin=codecs.preferred(data)))


def _has_pixels(data: Dataset) -> bool:
    return any(k in data for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


def _salvaged(raw: bytes, data: Dataset, ends: str, path: AnyFile) -> tuple[Dataset, tuple[str, ...]]:
    """Return the data set of a lenient parse of a file without pixel data, and a note.

    Raises Unreadable: no_pixels, not_an_image only if the strict parse reached the end, else truncated or corrupt.
    """
    mended, patched = raw, data
    for _ in range(MOST_REPAIRS):
        if (step := salvage.without_invalid_vr(mended, patched)) is None:
            break
        mended = step
        patched = _parsed_again(mended, path)
        if _has_pixels(patched):
            return patched, (salvage.INVALID_VR,)
    if ends == "cut":
        patched = _parsed_again(salvage.closed(mended), path)
        if "PixelData" in patched and encapsulation.is_whole(patched.PixelData):
            return patched, (salvage.NO_DELIMITER,)
        raise Unreadable("truncated", f"{path}: the file ends before its pixel data; restore it from its source")
    if ends or mended is not raw:
        raise Unreadable("corrupt", f"{path}: damaged before its pixel data; restore the file from its source")
    raise Unreadable(reason_without_pixels(data), f"{path}: no pixel data ({_kind(data)}); leave the file out")


def _parsed_again(raw: bytes, path: AnyFile) -> Dataset:
    """Return the parse of mended bytes, under the limits of a file."""
    _refuse_bomb(raw, path)
    data, _ = _parsed(raw, path)
    _refuse_other_objects(data, path)
    _refuse_giant(data, path)
    return data


def _parsed_or_mended(raw: bytes, path: AnyFile) -> tuple[bytes, Dataset, str, tuple[str, ...]]:
    """Return the bytes, their data set, where the parse ended, and a note if an invalid VR had to be mended first."""
    try:
        return (raw, *_parsed(raw, path), ())
    except Unreadable as error:
        mended = raw
        for _ in range(MOST_REPAIRS if error.code == "corrupt" else 0):
            if (step := salvage.without_nested_invalid_vr(mended)) is None:
                break
            mended = step
            with suppress(Unreadable):
                return (mended, *_parsed(mended, path), (salvage.INVALID_VR,))
        raise


def _parsed(raw: bytes, path: AnyFile) -> tuple[Dataset, str]:
    """Return the data set, and where its parse ended: "" at the end of the file, "cut" inside an element, or "lost".

    Hostile bytes may raise any exception, so all are caught; text that merely parses is refused.
    """
    stream = BytesIO(raw)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = pydicom.dcmread(stream, force=True)
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
    if any("End of file" in str(warning.message) for warning in caught):
        return data, "cut"
    beyond = salvage.overruns(raw, data)
    if beyond is None:
        return data, "" if salvage.is_deflated(data) or stream.tell() >= len(raw) else "lost"
    return data, "lost" if beyond.VR is None and not beyond.is_implicit_VR else "cut"


def _damaged(error: Exception, path: AnyFile) -> Unreadable:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    code = "truncated" if "less than expected" in reason or "End of" in reason else "corrupt"
    return Unreadable(code, f"{path}: damaged DICOM ({reason}); restore the file from its source")


def _kind(data: Dataset) -> str:
    uid = data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "no SOP class"
    return str(UID(str(uid)).name)


def _refuse_other_objects(header: Dataset, path: AnyFile) -> None:
    if str(header.get("Modality", "")) in NO_IMAGE_MODALITIES or "DirectoryRecordSequence" in header:
        raise Unreadable("not_an_image", f"{path}: a {_kind(header)}, not an image; leave the file out")


def _refuse_giant(header: Dataset, path: AnyFile) -> None:
    """Raise Unreadable if Rows x Columns x frames x samples of the header exceed the limit."""
    try:
        sides = [int(header.get(k) or 1) for k in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    except Exception as error:
        raise _damaged(error, path) from None
    if np.prod(np.array(sides, dtype=object)) > LIMIT_SAMPLES:
        size = " x ".join(map(str, sides))
        raise Unreadable("too_large", f"{path}: {size} samples exceed the limit of {LIMIT_SAMPLES}; leave the file out")


def _refuse_bomb(raw: bytes, path: AnyFile) -> None:
    """Raise Unreadable if a deflated data set inflates beyond the limit."""
    if bombs.inflates_beyond_limit(raw):
        limit = f"more than {bombs.LIMIT_INFLATED_BYTES >> 20} MiB when inflated"
        raise Unreadable("too_large", f"{path}: {limit}; leave the file out")


def _refuse_other_size(frame: bytes, data: Dataset, path: AnyFile) -> None:
    """Raise Unreadable if the stream's header has another size than the data set: a bomb, or foreign pixels."""
    if lacks_end_marker(frame) and not codecs.whole_without_end(frame):
        raise Unreadable("truncated", f"{path}: its JPEG stream is cut short; restore the file from its source")
    expected, size = (int(data.Rows), int(data.Columns)), frame_size(frame[:65536])
    if size is not None and size != expected:
        sizes = f"the compressed stream is {size[0]} x {size[1]}, the header has {expected[0]} x {expected[1]}"
        raise Unreadable("corrupt", f"{path}: {sizes}; restore the file from its source")


def _repair(data: Dataset, path: AnyFile, index: int) -> tuple[str, ...]:
    """Correct the transfer syntax, the frame count, the cells and the display tags; return notes."""
    notes: list[str] = []
    if "TransferSyntaxUID" not in data.file_meta:
        data.file_meta.TransferSyntaxUID = _assumed_syntax(data, path)
        notes.append("no transfer syntax")
    frames: Any = data.get("NumberOfFrames", 1)
    if frames in (None, "") or int(frames) < 1:
        data.NumberOfFrames = 1
        notes.append("no frame count")
    notes += [*encapsulation.mend_syntax(data), *widen_packed(data)]
    if has_excess(data):
        notes.append("more pixel data than the header declares")
    return (*notes, *repair_display(data, index))


def _assumed_syntax(data: Dataset, path: AnyFile) -> UID:
    """Return the uncompressed syntax that pydicom detected. Raises Unreadable on a compressed stream (PS3.10)."""
    if "PixelData" in data and data["PixelData"].is_undefined_length:
        raise Unreadable("corrupt", f"{path}: compressed, but without a transfer syntax; export the file again")
    implicit, little = data.original_encoding
    return ImplicitLE if implicit else ExplicitLE if little else ExplicitVRBigEndian


def _refuse_without_codec(syntax: UID, path: AnyFile) -> None:
    codecs.register()
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        hint = "convert the file to another transfer syntax"
        raise Unreadable("codec_missing", f"{path}: transfer syntax {syntax.name} is not supported; {hint}") from None
    if not decoder.is_available:
        needed = " ".join(codecs.packages(syntax))
        raise Unreadable("codec_missing", f"{path}: no decoder for {syntax.name}; run: pip install {needed}")
