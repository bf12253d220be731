"""The call `convert`: a folder of DICOM files to upright images and a manifest, without labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from medlt.api.display import displayed
from medlt.api.messages import in_python
from medlt.csv_text import unescaped
from medlt.files import read_table
from medlt.names import did_you_mean
from medlt.types import InputError, Progress

if TYPE_CHECKING:
    from medlt.data.convert import ConversionSettings


@dataclass(frozen=True, eq=False)
class Conversion:
    """A converted folder. Print it for its counts.

    folder: holds images/ and manifest.parquet; `Collection.from_dicom_folder` adds labels to it. out: the folder of the
    call, which holds the lists too; with de-identification `folder` is OUT/release. counts: converted, skipped and
    failed files, duplicates, and how often each reason and transfer syntax occurred.
    """

    folder: Path
    out: Path
    counts: Mapping[str, Any]

    @property
    def images(self) -> pd.DataFrame:
        """One row an image, indexed by uid: path, identifiers, view, sizes, window, device, notes; no labels."""
        return read_table(self.folder / "manifest.parquet")

    @property
    def failures(self) -> pd.DataFrame:
        """One row a file without an image: source, reason, kind (skipped or failed), hint."""
        return unescaped(pd.read_csv(self.out / "failures.csv"))

    def __str__(self) -> str:
        parts = [f"{self.counts[name]} {name}" for name in ("converted", "skipped", "failed")]
        reasons = [f"  {code}: {count}" for code, count in self.counts["reasons"].items()]
        return "\n".join([", ".join(parts), *reasons])

    def __repr__(self) -> str:
        return f"Conversion({self.counts['converted']} images in {str(self.folder)!r})"


def convert(
    source: str | Path, out: str | Path, size: int | None = None, *, deidentify: str | None = None,
    key: str | Path | None = None, workers: int = 0, progress: bool | Progress = True, **settings: Any,
) -> Conversion:  # fmt: skip
    """Convert a hospital's folder to upright images and a manifest; a file that gives no image is listed with a reason.

    The same call resumes an interrupted conversion, and `source` is only read. It does what `medlt convert` does.

    Args:
        source: a folder, a file, a zip, or a URL such as s3://bucket/archive.
        out: the folder to make.
        size: short side of the images, pixels; default: unchanged.
        deidentify: a profile of PS3.15, such as "basic" or "basic,retain-dates-modified"; what may leave is in
            OUT/release. Default: identifiers stay.
        key: the file with the secret of the pseudonyms, which `deidentify` needs.
        workers: processes; 0 is one per core. A script calls this below `if __name__ == "__main__":`.
        progress: as for `augment`.
        settings: further fields of `medlt.data.convert.ConversionSettings`, such as preset="linear16",
            format="png16", modalities=("CR", "DX"), tags=("KVP",), preview=True.

    Raises:
        InputError: for a source that is missing or empty, an unknown setting, and a folder that other settings made.

    Examples:
        >>> converted = medlt.convert("dicom", "converted", size=64, workers=1)
        >>> reasons = converted.failures["reason"].value_counts()
    """
    from medlt.data.convert import Places
    from medlt.data.convert import convert as work

    place = Path(out).expanduser()
    chosen = _settings({"size": size, **settings}, deidentify, key)
    with displayed(progress) as callback:
        counts = work(os.path.expanduser(source), place, chosen, workers=workers, progress=callback)
    return Conversion(Places(place, deidentify is not None).release, place, counts)


def _settings(given: Mapping[str, Any], deidentify: str | None, key: str | Path | None) -> ConversionSettings:
    """Return the settings of a conversion. Raises InputError for an unknown one, or a value that does not fit."""
    from medlt.data.convert import ConversionSettings
    from medlt.data.deidentify import Profile, read_key

    known = {one.name for one in fields(ConversionSettings)} - {"profile", "key", "dry_run"}
    if unknown := [name for name in given if name not in known]:
        close = did_you_mean(unknown[0], sorted(known)) or ";"
        raise InputError(f"convert has no setting {unknown[0]!r}{close} use {', '.join(sorted(known))}")
    profile = None if deidentify is None else Profile.parse(deidentify)
    secret = b"" if key is None else read_key(Path(key).expanduser())
    try:
        return ConversionSettings(profile=profile, key=secret, **given)
    except InputError as error:
        raise InputError(in_python(str(error))) from None
