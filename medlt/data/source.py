"""From the `data` section of a config to a manifest whose files are there and can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medlt import config as configs
from medlt.data.layouts import from_csv, from_nih
from medlt.data.manifest import Manifest
from medlt.data.pixels import PixelCache
from medlt.training.runtime import silent
from medlt.types import InputError, Progress

if TYPE_CHECKING:
    import pandas as pd


def open_data(data: configs.Data, *, seed: int, folder: Path) -> Manifest:
    """The manifest that `data` describes; a phantom cohort is written below `folder` first, or found there.

    Raises InputError for bad labels, missing files, and findings without a positive in the train split.
    """
    manifest = _read(data, seed, folder)
    manifest.check_files()
    manifest.require_positives()
    return manifest


def _read(data: configs.Data, seed: int, folder: Path) -> Manifest:
    if isinstance(data, configs.ManifestData):
        return Manifest.read(data.path)
    if isinstance(data, configs.CsvData):
        return from_csv(**{name: getattr(data, name) for name in type(data).model_fields if name != "kind"})
    if isinstance(data, configs.NihData):
        return from_nih(table=data.table, images=data.images, test_list=data.test_list, seed=seed)
    from medlt.data import phantom

    told = data.model_dump(exclude={"kind"})
    table = phantom.write(folder, seed=seed, **told)
    return from_csv(table=table, findings=(*phantom.FINDINGS, "No_Finding"))


def readable(
    manifest: Manifest, *, cache: PixelCache, sizes: Sequence[int], skip: bool, progress: Progress = silent
) -> tuple[Manifest, pd.DataFrame]:
    """The rows whose image can be read, with `content`, and a table uid, code, reason of the others, without paths.

    Their squares of every size of `sizes` are in the cache afterwards (`PixelCache.prepare`). Raises InputError if
    there is an unreadable file and `skip` is False.
    """
    kept, failures = cache.prepare(manifest, sizes, progress)
    if len(failures) and not skip:
        uid, reason = failures.iloc[0][["uid", "reason"]]
        told = reason.replace(uid, str(manifest.file(uid)), 1)
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise InputError(f"{told}{more}; mend it, or set skip_unreadable: true to go on without")
    return kept, failures
