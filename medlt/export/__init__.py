"""What leaves a run in other tools' formats: images as a folder, a trained generator as a bundle or a pipeline."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from medlt.plugins import resolve
from medlt.types import InputError

FORMATS = {
    "imagefolder": "medlt.export.imagefolder:export_imagefolder",
    "monai-bundle": "medlt.export.bundle:export_bundle",
    "diffusers": "medlt.export.pipeline:export_diffusers",
}
"""Format -> the function that writes it: called with the run folder and the folder to make."""


def export(run: Path, kind: str, out: Path) -> Path:
    """Write a finished run to the new folder `out` in one of FORMATS; returns `out`.

    Raises InputError for an unknown format, a run that is not finished, and a folder that is not empty.
    """
    if kind not in FORMATS:
        near = get_close_matches(kind, list(FORMATS), 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown export format {kind!r}; {meant}Use one of {', '.join(FORMATS)}")
    run, out = Path(run), Path(out)
    if not (run / "manifest.parquet").is_file():
        raise InputError(f"{run}: has no manifest.parquet, so it is no finished run; run `medlt augment` first")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out}: is there already; nothing is overwritten, give another folder")
    resolve(FORMATS[kind])(run, out)
    return out
