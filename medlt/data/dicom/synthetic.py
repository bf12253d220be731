"""Writes a synthetic image as DICOM, marked synthetic: Secondary Capture Image (PS3.3 A.8.1), Conversion Type SYN.

Nothing in the file comes from a source image: identifiers are new, dates and times are empty, there is no patient.
Derivation Description and Synthesizing Equipment name the method. Equal arguments give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medlt._version import __version__
from medlt.files import write_bytes
from medlt.types import InputError

__all__ = ["Origin", "synthetic_bytes", "synthetic_dataset", "write_synthetic"]

_NAMESPACE = uuid.UUID("6d1f4b0e-8f0c-5a37-9a55-0f6a0c7d2b11")
_LONGEST_NAME = 256  # four of them fit a Short Text, 1024 characters (PS3.5 6.2)
_LONGEST_COMMENT = 10240  # a Long Text
_LARGEST_SIDE = 2**16 - 1  # Rows and Columns are unsigned 16 bit


@dataclass(frozen=True)
class Origin:
    """Provenance of an image: plan row `uid`, `method`, digest of the `models`; `labels` in [0,1], NaN if unknown.

    `uid` and the names are written to the file unchanged: they must not contain an identifier of a source image.
    """

    uid: str
    method: str
    models: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)


def write_synthetic(path: Path, pixels: np.ndarray, origin: Origin) -> None:
    """Write `synthetic_dataset(pixels, origin)` to `path`, atomically.

    Raises InputError as that function does, and if `path` exists with other contents: nothing is overwritten.
    """
    path, data = Path(path), synthetic_bytes(pixels, origin)
    if not path.exists():
        write_bytes(path, data)
    elif path.read_bytes() != data:
        raise InputError(f"{path}: exists with other contents; choose another name, or move the file away")


def synthetic_bytes(pixels: np.ndarray, origin: Origin) -> bytes:
    """Return the bytes of `synthetic_dataset(pixels, origin)`, equal for equal arguments. Raises InputError too."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, synthetic_dataset(pixels, origin), enforce_file_format=True)
    return buffer.getvalue()


def synthetic_dataset(pixels: np.ndarray, origin: Origin) -> Dataset:
    """Return a gray image [H,W], bright means dense, as an uncompressed Secondary Capture Image.

    uint8 and uint16 are stored as they are; floats in [0,1] as 16 bits, rounded half up. `read_dicom` returns stored /
    255 or stored / 65535. Raises InputError on any other shape, type or range, and on unusable text.
    """
    _refuse_origin(origin)
    stored = _stored(pixels, origin.uid)
    data = Dataset()
    _identity(data, stored, origin)
    _made(data, origin)
    _pixels(data, stored)
    return data


def _refuse_origin(origin: Origin) -> None:
    """Raise InputError on names that cannot be DICOM text: a backslash separates values, controls are not allowed."""
    where = f"synthetic image {origin.uid[:40]!r}"
    for name in (origin.uid, origin.method, origin.models, *origin.labels):
        if not name.isprintable() or "\\" in name or len(name) > _LONGEST_NAME:
            raise InputError(
                f"{where}: {name[:40]!r} is not DICOM text; use up to 256 printable characters, no backslash"
            )
    if not origin.uid or not origin.method:
        raise InputError(f"{where}: uid or method is empty; give both")
    if strange := [name for name, value in origin.labels.items() if not (math.isnan(value) or 0 <= value <= 1)]:
        raise InputError(f"{where}: label {strange[0]!r} is not in [0, 1]; give NaN for an unknown one")
    if len(_comment(origin.labels)) > _LONGEST_COMMENT:
        raise InputError(f"{where}: too many labels for a DICOM comment; pass fewer")


def _stored(pixels: np.ndarray, uid: str) -> np.ndarray:
    """Return little-endian uint8 or uint16 [H,W]. Raises InputError on other pixels."""
    pixels, where = np.asarray(pixels), f"synthetic image {uid!r}"
    if pixels.ndim != 2 or not 0 < min(pixels.shape) <= max(pixels.shape) <= _LARGEST_SIDE:
        raise InputError(f"{where}: shape {pixels.shape} is not (rows, columns) of 1 to 65535; pass one gray image")
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    if pixels.dtype.kind != "f":
        raise InputError(f"{where}: pixels are {pixels.dtype}; pass uint8, uint16, or floats in [0, 1]")
    if not np.isfinite(pixels).all():
        raise InputError(f"{where}: holds values that are not finite; pass finite values")
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(f"{where}: values {pixels.min():g} to {pixels.max():g} are not in [0, 1]; scale them first")
    return np.floor(pixels.astype(np.float64) * (2**16 - 1) + 0.5).astype("<u2")


def _identity(data: Dataset, stored: np.ndarray, origin: Origin) -> None:
    """Fill file meta, SOP Common (C.12.1), Patient (C.7.1.1), General Study (C.7.2.1) and Series (C.7.3.1) modules.

    UIDs depend on all contents of the file, so two files that differ in a pixel or a label never share one.
    """
    pixels = hashlib.sha256(stored.tobytes()).hexdigest()
    made = (origin.uid, origin.method, origin.models, {k: float(v) for k, v in origin.labels.items()})
    key = json.dumps([__version__, stored.shape, stored.dtype.str, pixels, *made])
    meta = data.file_meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = dicom_uid("instance", key)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = dicom_uid("medlt")
    meta.ImplementationVersionName = "MEDLT"
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SyntheticData = "YES"
    data.PatientName = "SYNTHETIC^NO PATIENT"
    data.PatientID = f"SYNTH-{hashlib.sha256(origin.uid.encode()).hexdigest()[:16].upper()}"
    data.IssuerOfPatientID = "medlt"
    data.PatientBirthDate = data.PatientSex = ""
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = "Synthetic image: no patient exists"
    data.StudyInstanceUID, data.SeriesInstanceUID = dicom_uid("study", key), dicom_uid("series", key)
    data.StudyDate = data.StudyTime = data.StudyID = data.AccessionNumber = data.ReferringPhysicianName = ""
    data.StudyDescription = "SYNTHETIC image, no patient"
    data.SeriesDescription = f"SYNTHETIC {origin.method}"[:64]
    data.Laterality = ""
    data.SeriesNumber = data.InstanceNumber = 1


def _made(data: Dataset, origin: Origin) -> None:
    """Fill General Equipment (C.7.5.1), SC Equipment (C.8.6.1), General Image (C.7.6.1) and SOP Common modules."""
    data.Modality = "OT"
    data.ConversionType = "SYN"
    data.Manufacturer, data.ManufacturerModelName, data.SoftwareVersions = "medlt", origin.method[:64], __version__
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109100", "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    maker = Dataset()
    maker.PurposeOfReferenceCodeSequence = [purpose]
    maker.Manufacturer, maker.ManufacturerModelName = data.Manufacturer, data.ManufacturerModelName
    maker.SoftwareVersions = __version__
    data.ContributingEquipmentSequence = [maker]
    models = f"; models {origin.models}" if origin.models else ""
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.DerivationDescription = f"Synthetic: medlt {__version__}, method {origin.method}, row {origin.uid}{models}"
    data.ImageComments = _comment(origin.labels)
    data.PatientOrientation = None
    data.BurnedInAnnotation = "NO"


def _comment(labels: Mapping[str, float]) -> str:
    """Return the known labels as a sentence that does not claim a human reader."""
    known = [f"{name} {value:g}" for name, value in labels.items() if not math.isnan(value)]
    sentence = f" Labels given by the method, not confirmed by a reader: {'; '.join(known)}." if known else ""
    return f"SYNTHETIC image, not for diagnosis.{sentence}"


def _pixels(data: Dataset, stored: np.ndarray) -> None:
    """Fill Image Pixel (C.7.6.3) and VOI LUT (C.11.2) modules; the window is the identity on all stored values."""
    bits = stored.itemsize * 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits, bits - 1, 0
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = 2 ** (bits - 1), 2**bits, "LINEAR"
    data.LossyImageCompression = "00"
    data.PixelData = stored.tobytes()


def dicom_uid(*key: object) -> str:
    """Return a UID under 2.25 (PS3.5 B.2) that depends on the key alone."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(str, key))).int}"
