"""Converts one file to an output file and a row, or to a reason. Runs in a worker process and holds no state."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from pydicom.dataset import Dataset

from medlt.data.columns import IDENTIFIERS
from medlt.data.convert.archives import Member
from medlt.data.convert.encode import SUFFIX, encode
from medlt.data.convert.filters import refuse_filtered, unlabelled, values
from medlt.data.convert.objects import object_row
from medlt.data.convert.places import Places
from medlt.data.convert.plausibility import doubt
from medlt.data.convert.presets import PRESETS, Rendered, resized, to_uint8
from medlt.data.convert.settings import ConversionSettings
from medlt.data.convert.source import ConversionSource, open_source
from medlt.data.convert.upright import UPRIGHT, short_side, upright
from medlt.data.deidentify import Deidentified, deidentify, write_deidentified
from medlt.data.dicom.attributes import (
    kind_notes,
    laterality_of,
    meaning,
    procedure_of,
    region_of,
    remark,
    sop_class_of,
    text,
    view_of,
)
from medlt.data.dicom.guard import Unreadable, read_bytes
from medlt.data.dicom.read import spacing, unusable_tags
from medlt.files import sha256
from medlt.remote import AnyFile
from medlt.types import InputError

_NOT_CHEST_FILM = frozenset({"CR", "DX", "DR", "RG", ""})
_LONGEST = 1024  # the longest tag that is read, LO, may have 64 characters (PS3.5 6.2)
FULL = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = {
    "patient_id": "PatientID",
    "modality": "Modality",
    "sex": "PatientSex",
    "age": "PatientAge",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "sop_uid": "SOPInstanceUID",
    "accession": "AccessionNumber",
    "photometric": "PhotometricInterpretation",
}
_REMARKS = {
    "presentation_intent": "PresentationIntentType",
    "orientation": "PatientOrientation",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "procedure_step": "PerformedProcedureStepDescription",
}
_CODES = {
    "procedure_code": "ProcedureCodeSequence",
    "view_code": "ViewCodeSequence",
    "orientation_code": "PatientOrientationCodeSequence",
}
_DESCRIBED = {
    "view": view_of,
    "body_part": region_of,
    "laterality": laterality_of,
    "sop_class": sop_class_of,
    "procedure": procedure_of,
}


class Stopped(Exception):  # noqa: N818
    """Ends the whole conversion; the text is one line."""


@dataclass
class Outcome:
    """Outcome of one file: `rows`, one for each image, else a `reason` (see medlt.data.convert.reasons).

    `listed` is the row of a DICOM object that is no image. `owned` is for the owner only: of a file that was
    de-identified its `uid`, its identifiers (`original`), the tags of what was removed (`dropped`), and the `sha256` of
    what was written.
    """

    reason: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    listed: dict[str, str] = field(default_factory=dict)
    owned: dict[str, Any] = field(default_factory=dict)


def convert_one(place: AnyFile | Member, out: Path, settings: ConversionSettings, digits: int = 0) -> Outcome:
    """Convert a file, or a member of a zip, into `out`; a bad one gives a reason. Raises Stopped on a full disk.

    digits: of the subfolders of `out` (`Places`).
    """
    try:
        raw = place.read() if isinstance(place, Member) else read_bytes(place)
        source = open_source(raw)
        _refuse_unchecked(source, settings)
        refuse_filtered(source.data, settings)
        if settings.dry_run:
            return Outcome(rows=[_tags(source, settings)])
        return _converted(source, raw, Places(out, settings.profile is not None, digits), settings)
    except Unreadable as error:
        return Outcome(error.code, listed=object_row(raw, settings) if error.code == "not_an_image" else {})
    except InputError:  # a server that cannot be used; a second run tries again
        return Outcome("missing")
    except MemoryError:
        return Outcome("out_of_memory")
    except Stopped:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise Stopped(error.strerror) from None  # every later file would fail as well
        return Outcome("write_failed" if error.errno else "corrupt")
    except Exception:  # hostile bytes may raise any exception, and its text may quote them
        return Outcome("corrupt")


def _converted(source: ConversionSource, raw: bytes, places: Places, settings: ConversionSettings) -> Outcome:
    whole = blake3(raw).digest()
    uid, owned = image_uid(whole, settings.key), {}
    with unusable_tags(Path("file")):
        if settings.profile is not None:
            clean = deidentify(source.data, settings.profile, settings.key)
            original = {name: text(source.data, _TEXTS[name])[:_LONGEST] for name in IDENTIFIERS}
            written, reason = _write_released(clean, uid, places)
            file = {"file": written.relative_to(places.out).as_posix(), "sha256": sha256(written)}
            owned = {"uid": uid, **file, "original": original, "dropped": clean.dropped}
            if reason:
                return Outcome(reason, owned=owned)
            source = replace(source, data=clean.dataset, pixels=clean.values)
        every = settings.frames == "all" and settings.profile is None  # only one frame is ever de-identified
        # All images before one is written: a bad frame fails the file.
        images = [_image(one, settings) for one in (source.frames(raw) if every else (source,))]
    rows = []
    for data, row in images:
        name = frame_uid(uid, row["frame"])
        place = places.image(f"{name}{SUFFIX[settings.format]}", uid, len(images) > 1)
        if place.count("/") > 1:
            (places.release / place).parent.mkdir(parents=True, exist_ok=True)
        write_once(places.release / place, data)
        rows.append(row | _digests(whole, raw, data, settings) | {"uid": name, "path": place})
    return Outcome(rows=rows, owned=owned)


def _digests(whole: bytes, raw: bytes, data: bytes, settings: ConversionSettings) -> dict[str, Any]:
    """Return digests and sizes; with a key nothing of the input, which would lead back to the source."""
    own = {"blake3_in": whole.hex(), "bytes_in": len(raw)}
    made = {"sha256_out": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return ({"blake3_in": "", "bytes_in": 0} if settings.key else own) | made


def _image(source: ConversionSource, settings: ConversionSettings) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of an image, and its row without the columns about files."""
    stored, notes = source.stored(_reduction(source.data, settings))
    source = replace(source, notes=source.notes + notes)
    rendered, pixel = _rendered(stored, source.data, settings)
    shape = _shape(rendered, pixel)
    rendered = resized(rendered, settings.size)
    if settings.format in ("png", "jpeg") and rendered.pixels.dtype != "uint8":
        rendered = replace(rendered, pixels=to_uint8(rendered.pixels))
    return _encoded(rendered, shape, settings), _tags(source, settings) | shape | _made(rendered, settings)


def _rendered(
    stored: np.ndarray, data: Dataset, settings: ConversionSettings
) -> tuple[Rendered, tuple[float, float] | None]:
    """Return the image of the preset in its full size, with the note of a second opinion, and its spacing in mm."""
    rendered, pixel = PRESETS[settings.preset](stored, data), spacing(data)
    if pixel is not None:  # the image may be decoded at a lower resolution
        pixel = pixel[0] * int(data.Rows) / stored.shape[0], pixel[1] * int(data.Columns) / stored.shape[1]
    if note := doubt(rendered.pixels, stored, data):
        rendered = replace(rendered, notes=(*rendered.notes, note))
    return upright(rendered, pixel, data) if settings.preset in UPRIGHT else (rendered, pixel)


def _reduction(data: Dataset, settings: ConversionSettings) -> int:
    """Return the largest factor, up to that of the settings, that leaves the short side at `size` or above."""
    if settings.reduce == 1 or settings.size is None or "Rows" not in data:
        return 1
    side = short_side(int(data.Rows), int(data.Columns), spacing(data), data)
    return max((factor for factor in (2, 4) if factor <= settings.reduce and side / factor >= settings.size), default=1)


def _shape(rendered: Rendered, pixel: tuple[float, float] | None) -> dict[str, Any]:
    """Return the manifest's columns about the image before it is resized."""
    rows, columns = rendered.pixels.shape
    down, along = pixel or (None, None)
    return {"rows": rows, "columns": columns, "row_spacing_mm": down, "column_spacing_mm": along}


def _encoded(rendered: Rendered, shape: dict[str, Any], settings: ConversionSettings) -> bytes:
    pixel = None
    if shape["row_spacing_mm"] is not None:
        rows, columns = rendered.pixels.shape
        ratio = shape["rows"] / rows, shape["columns"] / columns
        pixel = shape["row_spacing_mm"] * ratio[0], shape["column_spacing_mm"] * ratio[1]
    return encode(rendered.pixels, settings.format, settings.quality, pixel, rendered.scale, rendered.offset)


def image_uid(whole: bytes, key: bytes) -> str:
    """Return the uid of an image: 24 hex digits of its file's BLAKE3 digest, keyed if there is a key.

    So no tag and no path of the source is part of a file name, and equal files have the same uid.
    """
    return (hmac.new(key, b"image" + whole, hashlib.sha256).hexdigest() if key else whole.hex())[:24]


def frame_uid(uid: str, frame: int) -> str:
    """Return the uid of a frame of an image, counted from 1; the first has that of the image."""
    return uid if frame == 1 else hashlib.sha256(f"{uid} frame {frame}".encode()).hexdigest()[:24]


def write_once(path: Path, data: bytes) -> None:
    """Write atomically. Raises FileExistsError if the file exists with other bytes."""
    if path.exists():
        if path.read_bytes() == data:
            return
        raise FileExistsError(errno.EEXIST, "another file of this name exists")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a link of this name would lead elsewhere
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_released(clean: Deidentified, uid: str, places: Places) -> tuple[Path, str]:
    """Write the de-identified file, into the quarantine if its pixels must not be released; return path and reason."""
    target = places.dicom(uid, held=clean.quarantine is not None)
    if not target.exists():
        write_deidentified(target, clean)
    return target, "quarantined" if clean.quarantine else ""


def _refuse_unchecked(source: ConversionSource, settings: ConversionSettings) -> None:
    """Raise Unreadable for a PNG, JPEG or NIfTI under a profile: PS3.15 covers DICOM only."""
    if settings.profile is not None and source.kind != "dicom":
        raise Unreadable("not_deidentified", "a picture without DICOM tags, which no profile covers")


def _tags(source: ConversionSource, settings: ConversionSettings) -> dict[str, Any]:
    """Return the manifest's columns about the source."""
    data = source.data
    syntax = str(data.file_meta.TransferSyntaxUID) if source.kind == "dicom" else source.kind
    modality = text(data, "Modality").upper()
    strange = (f"modality {modality}",) if modality not in _NOT_CHEST_FILM else ()
    return {
        **{name: text(data, keyword)[:_LONGEST] for name, keyword in _TEXTS.items()},
        **{name: remark(data, keyword)[:_LONGEST] for name, keyword in _REMARKS.items()},
        **{name: meaning(data, keyword)[:_LONGEST] for name, keyword in _CODES.items()},
        **{name: describe(data)[:_LONGEST] for name, describe in _DESCRIBED.items()},
        "bits_stored": _count(data, "BitsStored", 0),
        "frames": _count(data, "NumberOfFrames", 1),
        "frame": source.index + 1,
        "transfer_syntax": syntax,
        "notes": [*source.notes, *strange, *kind_notes(data), *unlabelled(data, settings)],
        **{keyword: "\\".join(values(data, keyword))[:_LONGEST] for keyword in settings.tags},
    }


def _count(data: Dataset, keyword: str, default: int) -> int:
    """Return a number of the header. Raises Unreadable if no image can have it."""
    value = int(data.get(keyword) or default)
    if not 0 <= value < 2**31:
        raise Unreadable("corrupt", f"{keyword} is out of range")
    return value


def _made(rendered: Rendered, settings: ConversionSettings) -> dict[str, Any]:
    """Return the manifest's columns about the output."""
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
