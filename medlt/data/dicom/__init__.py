"""DICOM radiographs: opened behind a guard, shown in the standard's order, written back."""

from medlt.data.dicom.display import Radiograph, modality_lut, presentation, read_dicom, voi_lut
from medlt.data.dicom.guard import Unreadable

__all__ = ["Radiograph", "Unreadable", "modality_lut", "presentation", "read_dicom", "voi_lut"]
