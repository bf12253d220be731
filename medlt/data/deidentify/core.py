"""One data set de-identified: actions, sweep, pixels, and a header that claims only what was done (PS3.15 Annex E)."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medlt._version import __version__
from medlt.data.deidentify import proof
from medlt.data.deidentify.actions import Actions
from medlt.data.deidentify.keyed import Keyed
from medlt.data.deidentify.pixels import PIXEL_ATTRIBUTES, Risk, Verdict, hidden_overlay, inspect, rewrite, trimmed
from medlt.data.deidentify.profile import CODES, DATES, EDITION, PIXELS, Profile
from medlt.data.deidentify.residual import sweep
from medlt.data.deidentify.text import Detector, text_boxes
from medlt.files import atomic

METHOD = f"medlt {__version__}, PS3.15 {EDITION} Table E.1-1"


@dataclass(frozen=True)
class Deidentified:
    """What `deidentify` made of a data set.

    `codes`: the code values of DeidentificationMethodCodeSequence; `actions`: elements by action letter, and under
    "residual" those the sweep replaced; `quarantine`: why the pixels must not be released, None where they may.
    """

    dataset: Dataset
    codes: tuple[str, ...]
    actions: Mapping[str, int]
    risk: Risk
    quarantine: str | None


def deidentify(data: Dataset, profile: Profile, key: bytes, detector: Detector | None = text_boxes) -> Deidentified:
    """De-identify `data` under `profile`; the source is not changed, and a second run changes nothing.

    Without a detector the pixels are not looked at, and the result does not claim that they identify no one.
    Raises InputError on a key of less than 32 bytes.
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
    """pydicom warns and logs of values that break the standard, and prints them: identifiers must not go there."""
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
    run = Actions(profile, Keyed(key, _patient(data)))
    out = run.level(data, nested=False)
    out.file_meta = _file_meta(data, out)
    out.preamble = b"\0" * 128
    trimmed(out)
    verdict = inspect(out, PIXELS in profile, detector, hidden_overlay(data))
    if verdict.cleaned is not None:
        rewrite(out, verdict.cleaned)
    hits = sweep(out, run.gone)
    verdict = _with_stream(verdict, out, run)
    codes = _claim(out, profile, verdict)
    proof.sign(out, METHOD, profile, key)
    return Deidentified(out, codes, {**run.counts, "residual": hits}, verdict.risk, verdict.quarantine)


def _again(data: Dataset, profile: Profile, detector: Detector | None) -> Deidentified:
    """This very profile's own output, proved by the key: the pixels are looked at once more, the file's head is new."""
    codes = tuple(str(item.CodeValue) for item in data.DeidentificationMethodCodeSequence)
    verdict = inspect(data, False, detector)
    out = copy.copy(data)
    out.file_meta, out.preamble = _file_meta(data, data), b"\0" * 128
    return Deidentified(out, codes, {"residual": 0}, verdict.risk, verdict.quarantine)


def _patient(data: Dataset) -> str:
    """Who the dates and pseudonyms belong to: PatientID, else name and birth date, else the study, else the image."""

    def text(*names: str) -> str:
        return "\x1f".join(str(data.get(name) or "").strip(" \0") for name in names).strip("\x1f")

    return (
        text("PatientID")
        or text("PatientName", "PatientBirthDate")
        or text("StudyInstanceUID")
        or text("SOPInstanceUID")
    )


def _file_meta(source: Dataset, out: Dataset) -> FileMetaDataset:
    """File meta information (PS3.10 7.1) written anew; of the source's only the transfer syntax is taken over."""
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


def _with_stream(verdict: Verdict, out: Dataset, run: Actions) -> Verdict:
    """A compressed stream may carry comments: one that holds an identifier is held back."""
    if verdict.quarantine or not out.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in out:
        return verdict
    told = "the compressed pixel stream holds an identifier of the patient"
    return Verdict(verdict.risk, told if run.gone.inside(out.PixelData) else None)


def _claim(out: Dataset, profile: Profile, verdict: Verdict) -> tuple[str, ...]:
    """Write what was done, and no more: 113101 and BurnedInAnnotation NO only after the pixels were looked at."""
    image = any(name in out for name in PIXEL_ATTRIBUTES)
    safe = verdict.quarantine is None and (verdict.risk.looked or not image)
    cleaned = image and safe and PIXELS in profile
    done = [option for option in CODES if option in profile and (option != PIXELS or cleaned)]
    out.PatientIdentityRemoved = "YES" if safe else "NO"
    out.DeidentificationMethodCodeSequence = Sequence([_coded(*CODES[option]) for option in done])
    out.LongitudinalTemporalInformationModified = "MODIFIED" if DATES in profile else "REMOVED"
    if cleaned or verdict.risk.left:
        out.BurnedInAnnotation = "NO" if cleaned else "YES"
    return tuple(CODES[option][0] for option in done)


def _coded(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
