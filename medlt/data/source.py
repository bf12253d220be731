"""Makes a manifest from the `data` section of a config and checks its files; `medlt.data.pixels` reads them."""

from __future__ import annotations

from pathlib import Path

from medlt import config as configs
from medlt.data.boxes import with_boxes
from medlt.data.layouts import from_csv, from_nih
from medlt.data.manifest import Manifest
from medlt.data.sides import with_sides

OWN = ("kind", "boxes", "reports")
"""Keys of a table's section that `from_csv` does not have."""


def open_data(data: configs.Data, *, seed: int, folder: Path) -> Manifest:
    """Return the manifest that `data` describes; a phantom cohort is first written below `folder` unless it exists.

    Its rows hold the boxes of `data.boxes` and the sides in `data.reports`. Raises InputError for invalid labels,
    missing files, boxes or reports that do not fit. `Manifest.require_positives` is the caller's.
    """
    manifest = _read(data, seed, folder)
    if not isinstance(data, configs.PhantomData) and data.boxes is not None:
        manifest = with_boxes(manifest, data.boxes)
    if not isinstance(data, configs.PhantomData) and data.reports is not None:
        manifest = with_sides(manifest, data.reports)
    manifest.check_files()
    return manifest


def _read(data: configs.Data, seed: int, folder: Path) -> Manifest:
    if isinstance(data, configs.ManifestData):
        return Manifest.read(data.path)
    if isinstance(data, configs.CsvData):
        return from_csv(**{name: getattr(data, name) for name in type(data).model_fields if name not in OWN})
    if isinstance(data, configs.NihData):
        return from_nih(table=data.table, images=data.images, test_list=data.test_list, seed=seed)
    from medlt.data import phantom

    table = phantom.write_phantom(folder, seed=seed, **data.model_dump(exclude={"kind"}))
    return from_csv(table=table, findings=(*phantom.FINDINGS, "No_Finding"))
