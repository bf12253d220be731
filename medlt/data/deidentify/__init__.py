"""De-identified DICOM: the Basic Application Level Confidentiality Profile of PS3.15 with its options, keyed."""

from medlt.data.deidentify.core import Deidentified, deidentify, write_deidentified
from medlt.data.deidentify.keyed import read_key
from medlt.data.deidentify.pixels import Risk
from medlt.data.deidentify.profile import Profile
from medlt.data.deidentify.text import Box, Detector, ocr_boxes, text_boxes

__all__ = [
    "Box",
    "Deidentified",
    "Detector",
    "Profile",
    "Risk",
    "deidentify",
    "ocr_boxes",
    "read_key",
    "text_boxes",
    "write_deidentified",
]
