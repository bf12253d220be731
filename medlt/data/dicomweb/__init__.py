"""Converts the radiographs of a DICOMweb server: QIDO-RS to search, WADO-RS to retrieve (DICOM PS3.18)."""

from medlt.data.dicomweb.run import convert_server, download, parse_query, search
from medlt.data.dicomweb.server import DicomWebServer

__all__ = ["DicomWebServer", "convert_server", "download", "parse_query", "search"]
