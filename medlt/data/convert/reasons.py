"""The reasons why a file is not converted, as fixed texts: an exception's text may quote the file, and so a patient."""

from __future__ import annotations

SKIPPED = {
    "not_dicom": "neither DICOM nor PNG, JPEG or NIfTI; nothing to do",
    "not_an_image": "a report, plan, document or DICOMDIR; see objects.csv for its study",
    "no_pixels": "tags without pixel data; fetch the image object from the archive",
    "unzipped": "a zip file; each of its members has its own row",
    "archive": "a packed archive that is no .zip, or inside one; unpack it and convert its folder",
    "document": "a PDF; nothing to do",
    "symlink": "a link, which --follow-links would follow, or a pipe or device, which is never opened",
    "empty": "0 bytes; copy the file again",
    "filtered": "excluded by --modality, --body-part, --include or --exclude; change these options to include it",
    "duplicate": "the same bytes as another file, which is converted; see duplicates.csv",
}
FAILED = {
    "not_retrieved": "the server did not deliver it; run the same command again, see not_retrieved.csv",
    "missing": "cannot be opened, or a broken link; check that it exists, and its permissions",
    "truncated": "pixel data are cut short; fetch the file again from its source",
    "corrupt": "damaged or contradictory; fetch the file again from its source",
    "too_large": "above the size limit, or a decompression bomb; convert it alone if it is genuine",
    "too_deep": "more grey levels than this preset supports; use --preset viewer",
    "colour": "a colour image, which this preset cannot render; use --preset viewer",
    "not_unpacked": "encrypted in its zip, or packed in an unusual way; unpack the zip and convert its folder",
    "codec_missing": "no installed decoder for its transfer syntax; see 'medlt doctor'",
    "quarantined": "its pixels may hold text, or cannot be checked; inspect it in quarantine/, or add clean-pixel",
    "not_deidentified": "PNG, JPEG or NIfTI, which --deidentify does not cover; check it and convert it separately",
    "out_of_memory": "needs more memory than --memory allows; raise it if the file is genuine",
    "timeout": "took longer than --timeout; raise it if the file is genuine",
    "crashed": "a decoder crashed on it; the file is damaged or hostile",
    "write_failed": "its output could not be written; check the output folder",
}
HINTS = {**SKIPPED, **FAILED}


def kind_of_reason(code: str) -> str:
    """Return 'skipped' for a file that is not a convertible image, 'failed' for an image that was not converted."""
    return "skipped" if code in SKIPPED else "failed"
