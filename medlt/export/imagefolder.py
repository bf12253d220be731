"""The images of a run as a Hugging Face `imagefolder`: a folder of PNG files and a metadata.csv beside them.

`datasets.load_dataset("imagefolder", data_dir=OUT)` reads it, and so does any tool that joins a table by file name.
Only synthetic images are written, unless real ones are wanted: these are of patients.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medlt.csv_text import as_csv
from medlt.export.images import copy_images, exported, gives_parents, prompts_of
from medlt.export.provenance import write_provenance
from medlt.files import write_text
from medlt.writer import metadata

NONE = "none"
"""Text of a column that a real image has no value for; readers take a blank for a number."""


def export_imagefolder(run: Path, out: Path, real: bool = False) -> None:
    """Write OUT/SPLIT/UID.png, OUT/SPLIT/metadata.csv, OUT/prompt_INFO.csv, OUT/provenance.json and the run's cards.

    metadata.csv: file_name, uid, one column per finding (1, 0, blank for unknown, or a soft label), then what made the
    image, for a real image the text "none" and the number -1, and its prompt. `datasets` reads equal column types in
    all splits. prompt_INFO.csv (prompt, img_savename) is what CheXGenBench reads with OUT as the image folder.
    Raises InputError if there is no image to write.
    """
    manifest = exported(run, real)
    write_provenance(run, out)
    names: dict[str, str] = {}
    for split, part in manifest.rows.groupby("split"):
        names |= copy_images(manifest, part, out / str(split))
    table = _without_gaps(metadata(manifest.rows, manifest.findings, names, parents=gives_parents(run)))
    table = table.assign(prompt=prompts_of(run, manifest))
    saved = [f"{split}/{names[str(uid)]}" for uid, split in manifest.rows["split"].items()]
    info = pd.DataFrame({"prompt": table["prompt"].to_numpy(), "img_savename": saved})
    write_text(out / "prompt_INFO.csv", as_csv(info))
    for split, part in table.groupby("split"):
        write_text(out / str(split) / "metadata.csv", as_csv(part))


def _without_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with NONE for missing texts and -1 for missing integers, so that a column has one type."""
    texts = [name for name in table if table[name].dtype.kind not in "fbiu"]
    whole = {name: table[name].fillna(-1).astype("int64") for name in table.select_dtypes("Int64")}
    return table.assign(**{name: table[name].fillna(NONE) for name in texts if name not in whole}, **whole)
