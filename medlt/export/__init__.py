"""What leaves a run in other tools' formats: images as a folder, a trained generator as a bundle or a pipeline."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medlt.export.upload import upload
from medlt.files import whole_folder
from medlt.names import did_you_mean
from medlt.plugins import resolve
from medlt.recipes._sealed import require_sealed
from medlt.remote import connected
from medlt.types import InputError, Progress

IMAGES = {
    "imagefolder": "medlt.export.imagefolder:export_imagefolder",
    "monai": "medlt.export.datalist:export_datalist",
    "cxr-lt": "medlt.export.lists:export_cxr_lt",
    "longtailcxr": "medlt.export.lists:export_longtailcxr",
    "parquet": "medlt.export.parquet:export_parquet",
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
SHARDED = ("parquet", "webdataset")
"""Formats whose images are in shards."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def export(
    run: Path, kind: str, out: Path, real: bool = False, labels: str | None = None, shard_size: int | None = None
) -> Path:
    """Write a run to the new folder `out` in one of FORMATS, and return `out`. It is whole, or not there.

    real: also write the real images, which are of patients; for the formats of images alone. labels: hard or soft, for
    the formats of LABELS; the others write soft labels as they are. shard_size: images in a shard, for the formats of
    SHARDED. Raises InputError for an unknown format, a run that has nothing to write, and a folder that is not empty.
    """
    writer, out = _writer(run, kind, real, labels, shard_size), Path(out).expanduser()
    with whole_folder(out) as fresh:
        writer(fresh)
    return out


def export_to_url(
    run: Path, kind: str, url: str, real: bool = False, labels: str | None = None, shard_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Do as `export` below a URL, and return the record of the upload, which is written last (`medlt.export.upload`).

    The files are first made in a temporary folder, since the record of what is begun names them all. Raises InputError
    as `export`, if that folder has no room, and if the server cannot be used, after which the same call resumes.
    """
    writer = _writer(run, kind, real, labels, shard_size)
    connected(url)
    with TemporaryDirectory(prefix="medlt-export-") as stage:
        try:
            writer(Path(stage))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            problem = f"{Path(stage).parent}: {os.strerror(error.errno)}"
            raise InputError(f"{problem}; set TMPDIR to a folder with room for the whole export") from None
        return upload(Path(stage), url, progress)


def _writer(run: Path, kind: str, real: bool, labels: str | None, shard_size: int | None) -> Callable[[Path], None]:
    """Return what writes a run to a folder.

    Raises InputError for an unknown format or option, and for a run that is not as it was written.
    """
    function, options = _function(kind), _options(kind, real, labels, shard_size)
    run = Path(run).expanduser().absolute()
    require_sealed(run)
    return partial(function, run, **options)


def _options(kind: str, real: bool, labels: str | None, shard_size: int | None) -> dict[str, Any]:
    """Return the options of a format's function. Raises InputError for one that the format does not have."""
    if real and kind not in IMAGES:
        raise InputError(f"format {kind} holds a generator and no images; leave real out")
    if labels not in (None, "hard", "soft"):
        raise InputError(f"labels {labels!r} is not valid; use hard or soft")
    if labels and kind not in LABELS:
        raise InputError(f"format {kind} has one form of labels; leave labels out, or use {' or '.join(LABELS)}")
    if shard_size is not None and kind not in SHARDED:
        raise InputError(f"format {kind} has no shards; leave --shard-size out, or use {' or '.join(SHARDED)}")
    given = {"real": real or None, "labels": labels, "shard_size": shard_size}
    return {name: value for name, value in given.items() if value is not None}


def _function(kind: str) -> Any:
    known = IMAGES | GENERATORS
    if kind not in known:
        raise InputError(
            f"no export format {kind!r}{did_you_mean(kind, FORMATS) or ';'} use one of {', '.join(FORMATS)}"
        )
    return resolve(known[kind])
