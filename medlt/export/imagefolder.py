"""The images of a run as a Hugging Face `imagefolder`: a folder of PNG files and a metadata.csv beside them.

`datasets.load_dataset("imagefolder", data_dir=OUT)` reads it, and so does any tool that joins a table by file name.
Only synthetic images are written, unless real ones are wanted: these are of patients.
"""

from __future__ import annotations

from pathlib import Path

from medlt.export.images import copy_images, exported, gives_parents
from medlt.export.provenance import write_provenance
from medlt.files import write_text
from medlt.writer import metadata


def export_imagefolder(run: Path, out: Path, real: bool = False) -> None:
    """Write OUT/SPLIT/UID.png, OUT/SPLIT/metadata.csv, OUT/provenance.json and the run's cards.

    metadata.csv: file_name, uid, one column per finding (1, 0, blank for unknown, or a soft label), then what made the
    image.
    Raises InputError where there is no image to write.
    """
    manifest = exported(run, real)
    write_provenance(run, out)
    for split, part in manifest.rows.groupby("split"):
        folder = out / str(split)
        names = copy_images(manifest, part, folder)
        table = metadata(part, manifest.findings, names, parents=gives_parents(run))
        write_text(folder / "metadata.csv", table.to_csv(index=False))
