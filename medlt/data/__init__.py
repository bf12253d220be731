"""Manifests, layouts, DICOM conversion, de-identification and data sets."""
