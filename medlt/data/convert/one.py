"""One file from bytes to an output file and a row, or to a reason. Runs in a worker; holds no state."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from medlt.data.convert.encode import SUFFIX, encode
from medlt.data.convert.pool import Stopped
from medlt.data.convert.presets import PRESETS, Rendered, resized, to_uint8
from medlt.data.convert.settings import Settings
from medlt.data.convert.source import Source, open_source
from medlt.data.deidentify import Deidentified, deidentify, write_deidentified
from medlt.data.dicom.guard import Unreadable, read_bytes
from medlt.data.dicom.read import readable, spacing, text

_NOT_CHEST_FILM = frozenset({"CR", "DX", "DR", "RG", ""})
_PIECE = 4096
_LONGEST = 1024  # LO, the longest text read, has 64 (PS3.5 6.2)
FULL = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = {
    "patient_id": "PatientID",
    "view": "ViewPosition",
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "laterality": "ImageLaterality",
    "sex": "PatientSex",
    "age": "PatientAge",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "sop_uid": "SOPInstanceUID",
    "accession": "AccessionNumber",
    "photometric": "PhotometricInterpretation",
}


@dataclass
class Outcome:
    """What came of one file: a `row` if it was converted, else a `reason` (see medlt.data.convert.reasons)."""

    reason: str = ""
    row: dict[str, Any] = field(default_factory=dict)


def convert_one(path: Path, out: Path, settings: Settings) -> Outcome:
    """Convert the file at `path` into `out`. Never raises on a bad file; raises Stopped if the disk is full."""
    try:
        raw = read_bytes(path)
        source = open_source(raw)
        _refuse_unchecked(source, settings)
        _refuse_filtered(source.data, settings)
        if settings.dry_run:
            return Outcome(row=_tags(source))
        return _converted(source, raw, out, settings)
    except Unreadable as error:
        return Outcome(error.code)
    except MemoryError:
        return Outcome("out_of_memory")
    except Stopped:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise Stopped(error.strerror) from None  # every later file would fail as well
        return Outcome("write_failed" if error.errno else "corrupt")
    except Exception:  # hostile bytes may raise anything, and what was raised may quote them
        return Outcome("corrupt")


def _converted(source: Source, raw: bytes, out: Path, settings: Settings) -> Outcome:
    whole = identity(raw, settings.digest)
    uid = name_of(whole, settings.key)
    with readable(Path("file")):
        if settings.profile is not None:
            clean = deidentify(source.data, settings.profile, settings.key)
            if held := _released(clean, uid, out):
                return Outcome(held)
            source = replace(source, data=clean.dataset)
        stored = source.stored()
        rendered = resized(PRESETS[settings.preset](stored, source.data), settings.size)
        if settings.format in ("png", "jpeg") and rendered.pixels.dtype != "uint8":
            rendered = replace(rendered, pixels=to_uint8(rendered.pixels))
        data = _encoded(rendered, source.data, settings)
        row = _tags(source) | {"rows": stored.shape[0], "columns": stored.shape[1]} | _made(rendered, settings)
    place = f"images/{uid}{SUFFIX[settings.format]}"
    put(out / place, data)
    told = whole.hex() if settings.digest and not settings.key else ""
    digests = {"sha256_in": told, "sha256_out": hashlib.sha256(data).hexdigest()}
    return Outcome(row=row | digests | {"uid": uid, "path": place, "bytes_in": len(raw), "bytes": len(data)})


def _encoded(rendered: Rendered, data: Dataset, settings: Settings) -> bytes:
    pixel = spacing(data)
    if pixel is not None and "Rows" in data:
        ratio = int(data.Rows) / rendered.pixels.shape[0], int(data.Columns) / rendered.pixels.shape[1]
        pixel = pixel[0] * ratio[0], pixel[1] * ratio[1]
    return encode(rendered.pixels, settings.format, settings.quality, pixel, rendered.scale, rendered.offset)


def identity(raw: bytes, whole: bool) -> bytes:
    """SHA-256 of a file: of all of it, or of its size, its ends and 64 places between, which tells files apart from
    266 KB of each but vouches for none."""
    if whole or len(raw) <= _PIECE * 256:
        return hashlib.sha256(raw).digest()
    starts = range(0, len(raw) - _PIECE, (len(raw) - _PIECE) // 64)
    pieces = [raw[at : at + _PIECE] for at in starts]
    return hashlib.sha256(b"".join([str(len(raw)).encode(), *pieces, raw[-_PIECE:]])).digest()


def name_of(whole: bytes, key: bytes) -> str:
    """The uid of an image: 24 hex digits of its file's `identity`, under the key where there is one.

    So neither a tag nor a path of the source is ever part of a name, and equal files have one name.
    """
    return (hmac.new(key, b"image" + whole, hashlib.sha256).hexdigest() if key else whole.hex())[:24]


def put(path: Path, data: bytes) -> None:
    """Write whole or not at all. A file that is there already must hold the same bytes; raises FileExistsError."""
    if path.exists():
        if path.read_bytes() == data:
            return
        raise FileExistsError(errno.EEXIST, "another file of this name is there")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _released(clean: Deidentified, uid: str, out: Path) -> str:
    """Write the de-identified file; the reason if its pixels must not be released, and then into quarantine/."""
    folder = "quarantine" if clean.quarantine else "dicom"
    target = out / folder / f"{uid}.dcm"
    if not target.exists():
        write_deidentified(target, clean)
    return "quarantined" if clean.quarantine else ""


def _refuse_unchecked(source: Source, settings: Settings) -> None:
    """PS3.15 is about DICOM: a picture's pixels are not looked at, so it must not pass for de-identified."""
    if settings.profile is not None and source.kind != "dicom":
        raise Unreadable("not_deidentified", "a picture without DICOM tags, which no profile covers")


def _refuse_filtered(data: Dataset, settings: Settings) -> None:
    for keyword, allowed in (("Modality", settings.modalities), ("BodyPartExamined", settings.body_parts)):
        if allowed and text(data, keyword).upper() not in allowed:
            raise Unreadable("filtered", f"{keyword} is not asked for")


def _tags(source: Source) -> dict[str, Any]:
    """What the manifest says of the source."""
    data = source.data
    pixel = spacing(data)
    syntax = str(data.file_meta.TransferSyntaxUID) if source.kind == "dicom" else source.kind
    modality = text(data, "Modality").upper()
    strange = (f"modality {modality}",) if modality not in _NOT_CHEST_FILM else ()
    return {
        **{name: text(data, keyword)[:_LONGEST] for name, keyword in _TEXTS.items()},
        "rows": _count(data, "Rows", 0),
        "columns": _count(data, "Columns", 0),
        "bits_stored": _count(data, "BitsStored", 0),
        "frames": _count(data, "NumberOfFrames", 1),
        "row_spacing_mm": pixel[0] if pixel else None,
        "column_spacing_mm": pixel[1] if pixel else None,
        "transfer_syntax": syntax,
        "notes": [*source.notes, *strange],
    }


def _count(data: Dataset, keyword: str, default: int) -> int:
    """A number of the header; raises Unreadable if it is beyond what any image has."""
    value = int(data.get(keyword) or default)
    if not 0 <= value < 2**31:
        raise Unreadable("corrupt", f"{keyword} is out of range")
    return value


def _made(rendered: Rendered, settings: Settings) -> dict[str, Any]:
    """What the manifest says of the output."""
    rows, columns = rendered.pixels.shape
    return {
        "preset": settings.preset,
        "format": settings.format,
        "quality": settings.quality if settings.format == "jpeg" else None,
        "out_rows": rows,
        "out_columns": columns,
        "window": rendered.window,
        "scale": rendered.scale,
        "offset": rendered.offset,
        "made_notes": list(rendered.notes),
    }
