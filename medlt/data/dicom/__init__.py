"""Reads DICOM radiographs safely, applies the standard's display pipeline, and writes synthetic DICOM."""

from medlt.data.dicom.guard import Unreadable
from medlt.data.dicom.luts import modality_lut, presentation, voi_lut
from medlt.data.dicom.read import Radiograph, read_dicom
from medlt.data.dicom.synthetic import Origin, write_synthetic

__all__ = [
    "Origin",
    "Radiograph",
    "Unreadable",
    "modality_lut",
    "presentation",
    "read_dicom",
    "voi_lut",
    "write_synthetic",
]
