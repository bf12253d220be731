"""De-identifies one data set: actions, sweep, pixels, and a header that claims only what was done (PS3.15 Annex E)."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medlt._version import __version__
from medlt.data.deidentify import proof
from medlt.data.deidentify.actions import Actions
from medlt.data.deidentify.keyed import Keyed
from medlt.data.deidentify.pixels import (
    PIXEL_ATTRIBUTES,
    PixelDecision,
    Risk,
    inspect,
    rebuild,
    trimmed,
)
from medlt.data.deidentify.profile import CODES, DATES, EDITION, PIXELS, Profile
from medlt.data.deidentify.residual import sweep
from medlt.data.deidentify.text import Detector, text_boxes
from medlt.files import atomic

METHOD = f"medlt {__version__}, PS3.15 {EDITION} Table E.1-1"


@dataclass(frozen=True)
class Deidentified:
    """Result of `deidentify`.

    `codes`: the code values of DeidentificationMethodCodeSequence; `actions`: elements by action letter, and under
    "residual" those that the sweep replaced; `quarantine`: why the pixels must not be released, None if they may;
    `values`: the stored values [H,W] or [H,W,3] that were written, None if no pixel was; `dropped`: number of removed
    elements by tag (eight hex digits).
    """

    dataset: Dataset
    codes: tuple[str, ...]
    actions: Mapping[str, int]
    risk: Risk
    quarantine: str | None
    values: np.ndarray | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)


def deidentify(data: Dataset, profile: Profile, key: bytes, detector: Detector | None = text_boxes) -> Deidentified:
    """Return `data` de-identified under `profile`; the source is not changed, and a second run changes nothing.

    Without a detector the pixels are not inspected, and the result makes no claim about them. Raises InputError on a
    key of less than 32 bytes.
    """
    with _quiet():
        if proof.holds(data, profile, key):
            return _again(data, profile, detector)
        return _first(data, profile, key, detector)


def write_deidentified(path: Path, result: Deidentified) -> None:
    """Write `result` as a DICOM file with an empty preamble, atomically."""
    with atomic(Path(path)) as temporary, _quiet():
        pydicom.dcmwrite(temporary, result.dataset, enforce_file_format=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom, whose warnings and logs quote values that violate the standard, and so identifiers."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = before


def _first(data: Dataset, profile: Profile, key: bytes, detector: Detector | None) -> Deidentified:
    run = Actions(profile, Keyed(key, _patient(data)), str(data.get("PatientID") or "").strip(" \0"))
    out = run.level(data, nested=False)
    out.file_meta = _file_meta(data, out)
    out.preamble = b"\0" * 128
    trimmed(out)
    decision = inspect(out, PIXELS in profile, detector)
    if decision.values is not None:
        rebuild(out, decision.values)
    hits = sweep(out, run.removed)
    codes = _claim(out, profile, decision)
    proof.sign(out, METHOD, profile, key)
    actions = {**run.counts, "residual": hits}
    held, values = decision.quarantine, decision.values
    return Deidentified(out, codes, actions, decision.risk, held, values, dict(run.dropped))


def _again(data: Dataset, profile: Profile, detector: Detector | None) -> Deidentified:
    """Return output of this profile and key, whose proof holds: inspect the pixels again, renew the file meta."""
    codes = tuple(str(item.CodeValue) for item in data.DeidentificationMethodCodeSequence)
    decision = inspect(data, False, detector)
    out = copy.copy(data)
    out.file_meta, out.preamble = _file_meta(data, data), b"\0" * 128
    return Deidentified(out, codes, {"residual": 0}, decision.risk, decision.quarantine, decision.values)


def _patient(data: Dataset) -> str:
    """Return the key of dates and pseudonyms: PatientID with its issuer, else name and birth date, study, or image."""

    def text(*names: str) -> str:
        return "\x1f".join(str(data.get(name) or "").strip(" \0") for name in names).strip("\x1f")

    issued = text("IssuerOfPatientID") and text("PatientID") and text("IssuerOfPatientID", "PatientID")
    return (
        issued
        or text("PatientID")
        or text("PatientName", "PatientBirthDate")
        or text("StudyInstanceUID")
        or text("SOPInstanceUID")
    )


def _file_meta(source: Dataset, out: Dataset) -> FileMetaDataset:
    """Return new file meta information (PS3.10 7.1); only the transfer syntax is taken from the source."""
    old = getattr(source, "file_meta", None) or Dataset()
    implicit = getattr(source, "original_encoding", (None, None))[0]
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    if kind := out.get("SOPClassUID") or old.get("MediaStorageSOPClassUID"):
        meta.MediaStorageSOPClassUID = UID(str(kind))
    if name := out.get("SOPInstanceUID"):
        meta.MediaStorageSOPInstanceUID = UID(str(name))
    plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.TransferSyntaxUID = UID(str(old.get("TransferSyntaxUID") or plain))
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"MEDLT {__version__}"[:16]
    return meta


def _claim(out: Dataset, profile: Profile, decision: PixelDecision) -> tuple[str, ...]:
    """Write only what was done: 113101 and BurnedInAnnotation NO only after an inspection of the pixels."""
    image = any(name in out for name in PIXEL_ATTRIBUTES)
    safe = decision.quarantine is None and (decision.risk.inspected or not image)
    cleaned = image and safe and PIXELS in profile
    done = [option for option in CODES if option in profile and (option != PIXELS or cleaned)]
    out.PatientIdentityRemoved = "YES" if safe else "NO"
    out.DeidentificationMethodCodeSequence = Sequence([_coded(*CODES[option]) for option in done])
    out.LongitudinalTemporalInformationModified = "MODIFIED" if DATES in profile else "REMOVED"
    if cleaned or decision.risk.remaining:
        out.BurnedInAnnotation = "NO" if cleaned else "YES"
    return tuple(CODES[option][0] for option in done)


def _coded(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
