"""From the `data` section of a config to a manifest whose files are there and can be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medlt import config as configs
from medlt.data.layouts import from_csv, from_nih
from medlt.data.loaders import scan
from medlt.data.manifest import Manifest
from medlt.types import InputError

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


def readable(manifest: Manifest, *, skip: bool) -> tuple[Manifest, pd.DataFrame]:
    """The rows whose image can be read, and a table uid, code, reason of the others, without their paths.

    Raises InputError if there is an unreadable one and `skip` is False.
    """
    failures = scan(manifest)
    if len(failures) and not skip:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise InputError(f"{failures.iloc[0]['reason']}{more}; mend it, or set skip_unreadable: true to go on without")
    paths = {uid: str(manifest.file(uid)) for uid in failures["uid"]}
    reasons = [reason.replace(paths[uid], uid) for uid, reason in zip(failures["uid"], failures["reason"], strict=True)]
    kept = manifest.where(~manifest.rows.index.to_series().isin(failures["uid"]))
    return kept, failures.assign(reason=reasons)
