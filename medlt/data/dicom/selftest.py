"""Decodes a small frame of every supported transfer syntax, by the path of `read_dicom` and `medlt convert`.

frames.csv holds one compressed 16 x 16 frame per syntax in base64, encoded with imagecodecs (RLE with pydicom): bits
stored, the largest difference from `expected` that a lossy syntax may have, and the stream. Uncompressed syntaxes need
no stored frame.
"""

from __future__ import annotations

import base64
import csv
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from medlt.data.dicom.codecs import packages
from medlt.data.dicom.guard import Unreadable, open_bytes, stored_values

NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
SIZE = 16
_PLACE = Path("self-test")


@dataclass(frozen=True)
class Frame:
    """A compressed frame: bits stored, tolerance in stored values, and the stream."""

    bits: int
    tolerance: int
    stream: bytes


@dataclass(frozen=True)
class CodecResult:
    """Result for one transfer syntax. `name` is its keyword; `reason` and `hint` are empty if it `passed`."""

    syntax: str
    name: str
    passed: bool
    reason: str = ""
    hint: str = ""


@cache
def frames() -> dict[str, Frame]:
    """Return the stored frames by transfer syntax UID."""
    lines = (files(__package__) / "frames.csv").read_text(encoding="utf-8").splitlines()
    return {
        row["uid"]: Frame(int(row["bits"]), int(row["tolerance"]), base64.b64decode(row["stream"]))
        for row in csv.DictReader(lines)
    }


def expected(bits: int) -> np.ndarray:
    """Return the true values of a frame, uint8 [16,16] for 8 bits, else uint16 [16,16] of 12 bits."""
    ramp = np.add.outer(12 * np.arange(SIZE), 4 * np.arange(SIZE)).astype(np.uint8)
    return ramp if bits == 8 else ramp.astype(np.uint16) * 16


def file_bytes(syntax: str) -> bytes:
    """Return a DICOM file of 16 x 16 pixels in this transfer syntax."""
    frame = frames().get(syntax, Frame(12, 0, b""))
    values = expected(frame.bits)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.UID(syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "2.25.1"
    data.Rows = data.Columns = SIZE
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * values.itemsize, frame.bits, frame.bits - 1
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    native = values.astype(f"{order}u{values.itemsize}").tobytes()
    data.add_new("PixelData", "OB" if frame.stream else "OW", encapsulate([frame.stream]) if frame.stream else native)
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def check_codec(syntax: str) -> CodecResult:
    """Decode the frame of this transfer syntax and compare it with the true values."""
    name, frame = uid.UID(syntax).keyword, frames().get(syntax, Frame(12, 0, b""))
    needed = packages(syntax)
    install = f"pip install {' '.join(needed)}" if needed else "reinstall medlt: pip install --force-reinstall medlt"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data, _ = open_bytes(file_bytes(syntax), _PLACE)
            values = stored_values(data, _PLACE)
    except Unreadable as error:
        reason = "no installed decoder" if error.code == "codec_missing" else str(error).removeprefix(f"{_PLACE}: ")
        return CodecResult(syntax, name, False, reason, install)
    except Exception as error:  # a broken package may raise any exception
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return CodecResult(syntax, name, False, reason, install)
    truth = expected(frame.bits)
    if values.shape != truth.shape or np.abs(values.astype(np.int64) - truth).max() > frame.tolerance:
        return CodecResult(syntax, name, False, "decodes to wrong values", f"update the decoder: {install} --upgrade")
    return CodecResult(syntax, name, True)


def check_codecs() -> tuple[CodecResult, ...]:
    """Check every supported transfer syntax."""
    return tuple(check_codec(syntax) for syntax in (*NATIVE, *frames()))
