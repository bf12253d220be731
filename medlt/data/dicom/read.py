"""Reads a DICOM file as a displayed radiograph with the tags that training needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from medlt.data.dicom.attributes import region_of, text, view_of
from medlt.data.dicom.display import apply_display
from medlt.data.dicom.guard import Unreadable, frame, open_bytes, read_bytes
from medlt.remote import AnyFile, as_file


@dataclass(frozen=True)
class Radiograph:
    """A displayed radiograph: `pixels` float32 [H,W] in [0,1], bright means dense, and the tags of the file.

    Rows and columns are as stored. `spacing` is (row, column) in mm, None if unknown. `frames` is the declared number;
    only the first frame is read. `notes` list irregularities and assumptions. Absent text is "".
    """

    pixels: np.ndarray
    uid: str
    patient_id: str
    modality: str
    body_part: str
    view: str
    photometric: str
    transfer_syntax: str
    bits_stored: int
    spacing: tuple[float, float] | None
    frames: int
    notes: tuple[str, ...]


def read_dicom(path: str | AnyFile) -> Radiograph:
    """Read one DICOM file. Raises Unreadable (an InputError with a reason code) if it is not an image."""
    file = as_file(path)
    return radiograph_in(read_bytes(file), file)


def radiograph_in(raw: bytes, path: AnyFile) -> Radiograph:
    """Do as `read_dicom` for a file in memory; `path` is its name in errors."""
    with unusable_tags(path):
        data, notes = open_bytes(raw, path)
        stored, more = frame(data, path)
        display = apply_display(stored, data)
        return _described(data, display.unit(), notes + more + display.notes)


@contextmanager
def unusable_tags(path: AnyFile) -> Iterator[None]:
    """Raise Unreadable for errors from unusable display tags, and silence warnings about values.

    Hospital files violate many value rules; what matters is in the notes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Unreadable:
            raise
        except (LookupError, AttributeError, TypeError, ValueError, OverflowError, NotImplementedError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise Unreadable("corrupt", f"{path}: unusable display tags ({reason}); export the file again") from None


def _described(data: Dataset, pixels: np.ndarray, notes: tuple[str, ...]) -> Radiograph:
    return Radiograph(
        pixels=np.ascontiguousarray(pixels),
        uid=text(data, "SOPInstanceUID"),
        patient_id=text(data, "PatientID"),
        modality=text(data, "Modality"),
        body_part=region_of(data),
        view=view_of(data),
        photometric=text(data, "PhotometricInterpretation"),
        transfer_syntax=str(data.file_meta.TransferSyntaxUID),
        bits_stored=int(data.get("BitsStored") or 32),
        spacing=spacing(data),
        frames=int(data.get("NumberOfFrames") or 1),
        notes=notes,
    )


def spacing(data: Dataset) -> tuple[float, float] | None:
    """Return Pixel Spacing, else Imager Pixel Spacing (at the detector); None unless two positive numbers."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        value = data.get(keyword)
        if value is not None and len(value) == 2 and min(float(v) for v in value) > 0:
            return float(value[0]), float(value[1])
    return None
