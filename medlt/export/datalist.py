"""The images of a run as a MONAI datalist, for `monai.data.load_decathlon_datalist(FILE, False, "training")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medlt.data.manifest import Manifest
from medlt.export.images import copy_images, exported
from medlt.export.provenance import NOTICE, write_provenance
from medlt.files import write_json

KEYS = {"train": "training", "val": "validation", "test": "test"}
"""Split -> its key in the datalist."""


def export_datalist(run: Path, out: Path, real: bool = False) -> None:
    """Write OUT/images/UID.png, OUT/datalist.json, OUT/provenance.json and the run's cards.

    An item is {"image": path, "label": [K], "uid", "weight", "synthetic"}. A label is 1, 0, null for unknown, or a soft
    label; `numpy.asarray(item["label"], "float32")` makes null NaN. Raises InputError where there is no image to write.
    """
    manifest = exported(run, real)
    record = write_provenance(run, out)
    names = copy_images(manifest, manifest.rows, out / "images")
    lists = {
        key: _items(manifest, manifest.rows[manifest.rows["split"] == split], names) for split, key in KEYS.items()
    }
    head = {
        "name": "medlt",
        "description": NOTICE,
        "run": record["run"],
        "modality": {"0": "X-ray"},
        "labels": {str(number): name for number, name in enumerate(manifest.findings)},
        "numTraining": len(lists["training"]),
        "numTest": len(lists["test"]),
    }
    write_json(out / "datalist.json", head | lists)


def _items(manifest: Manifest, rows: pd.DataFrame, names: dict[str, str]) -> list[dict[str, Any]]:
    labels = manifest.labels(list(rows.index)).astype(float)
    columns = {"weight": (1.0, float), "synthetic": (False, bool)}
    return [
        {
            "image": f"images/{names[str(uid)]}",
            "label": [None if np.isnan(value) else round(float(value), 6) for value in vector],
            "uid": str(uid),
            **{name: kind(row.get(name, default)) for name, (default, kind) in columns.items()},
        }
        for (uid, row), vector in zip(rows.iterrows(), labels, strict=True)
    ]
