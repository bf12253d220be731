"""What leaves a run in other tools' formats: images as a folder, a trained generator as a bundle or a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medlt.files import whole_folder
from medlt.names import did_you_mean
from medlt.plugins import resolve
from medlt.types import InputError

IMAGES = {
    "imagefolder": "medlt.export.imagefolder:export_imagefolder",
    "monai": "medlt.export.datalist:export_datalist",
    "cxr-lt": "medlt.export.lists:export_cxr_lt",
    "longtailcxr": "medlt.export.lists:export_longtailcxr",
    "torchxrayvision": "medlt.export.torchxrayvision:export_torchxrayvision",
    "webdataset": "medlt.export.webdataset:export_webdataset",
}
"""Format of images -> the function that writes it, called with the run folder, a new folder, and `real`."""
GENERATORS = {
    "monai-bundle": "medlt.export.bundle:export_bundle",
    "diffusers": "medlt.export.pipeline:export_diffusers",
}
"""Format of a generator -> the function that writes it, called with the run folder and a new folder."""
FORMATS = (*IMAGES, *GENERATORS)
LABELS = ("longtailcxr", "torchxrayvision")
"""Formats with a choice of hard or soft labels."""


def export(run: Path, kind: str, out: Path, real: bool = False, labels: str | None = None) -> Path:
    """Write a run to the new folder `out` in one of FORMATS, and return `out`. It is whole, or not there.

    real: also write the real images, which are of patients; for the formats of images alone. labels: hard or soft, for
    the formats of LABELS; the others write soft labels as they are.
    Raises InputError for an unknown format, a run that has nothing to write, and a folder that is not empty.
    """
    run, out = Path(run).expanduser().absolute(), Path(out).expanduser()
    writer = _writer(kind)
    if real and kind not in IMAGES:
        raise InputError(f"format {kind} holds a generator and no images; leave real out")
    if labels not in (None, "hard", "soft"):
        raise InputError(f"labels {labels!r} is not valid; use hard or soft")
    if labels and kind not in LABELS:
        raise InputError(f"format {kind} has one form of labels; leave labels out, or use {' or '.join(LABELS)}")
    with whole_folder(out) as fresh:
        writer(run, fresh, **({"real": True} if real else {}), **({"labels": labels} if labels else {}))
    return out


def _writer(kind: str) -> Any:
    known = IMAGES | GENERATORS
    if kind not in known:
        raise InputError(
            f"no export format {kind!r}{did_you_mean(kind, FORMATS) or ';'} use one of {', '.join(FORMATS)}"
        )
    return resolve(known[kind])
