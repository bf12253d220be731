"""The images of a run as a Hugging Face `imagefolder`: a folder of PNG files and a metadata.csv beside them.

`datasets.load_dataset("imagefolder", data_dir=OUT)` reads it, and so does any tool that joins a table by file name.
Only synthetic images are written, unless real ones are wanted: these are of patients.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medlt.export.images import copy_images, exported, origin
from medlt.export.provenance import write_provenance
from medlt.files import write_text


def export_imagefolder(run: Path, out: Path, real: bool = False) -> None:
    """Write OUT/SPLIT/UID.png, OUT/SPLIT/metadata.csv, OUT/provenance.json and the run's cards.

    metadata.csv: file_name, one column a finding (1, 0, blank for unknown, or a soft label), then what made the image.
    Raises InputError where there is no image to write.
    """
    manifest = exported(run, real)
    record = write_provenance(run, out)
    for split, part in manifest.rows.groupby("split"):
        folder = out / str(split)
        names = copy_images(manifest, part, folder)
        table = pd.concat([part[list(manifest.findings)], origin(part, record["run"])], axis=1)
        table.insert(0, "file_name", list(names.values()))
        write_text(folder / "metadata.csv", table.to_csv(index=False))
