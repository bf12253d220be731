"""The images of a run as torchxrayvision's NIH_Dataset reads them (Cohen et al., MIDL 2022).

    NIH_Dataset(imgpath="OUT/images", csvpath="OUT/train.csv", views=["*"], unique_patients=False)

It reads Image Index, Finding Labels (names joined by '|'), Patient ID, Patient Age, Patient Gender and View Position.
Without `views` it keeps PA alone, and without `unique_patients` one image a patient.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medlt.data.layouts import NIH_FINDINGS
from medlt.data.layouts.reading import known_findings
from medlt.data.manifest import Manifest
from medlt.export.images import copy_images, exported, whole_seeds
from medlt.export.provenance import write_provenance
from medlt.files import write_text
from medlt.types import InputError

READABLE = (".png", ".jpg", ".jpeg")


def export_torchxrayvision(run: Path, out: Path, real: bool = False, labels: str = "hard") -> None:
    """Write OUT/SPLIT.csv, OUT/images/, OUT/provenance.json and the run's cards.

    A label of 0.5 or more is present; the format has neither soft nor unknown labels, and an unknown one is absent.
    Raises InputError for soft labels, for real images that are not PNG or JPEG, and where there is no image to write.
    """
    if labels == "soft":
        raise InputError("format torchxrayvision has no soft labels; use --labels hard, or format longtailcxr")
    manifest = exported(run, real)
    others = [uid for uid in manifest.rows.index if manifest.file(uid).suffix.lower() not in READABLE]
    if others:
        raise InputError(f"uid {others[0]}: torchxrayvision reads PNG and JPEG only; run `medlt convert` on the source")
    write_provenance(run, out)
    names = copy_images(manifest, manifest.rows, out / "images")
    table = _entries(manifest, names)
    for split, part in manifest.rows.groupby("split"):
        write_text(out / f"{split}.csv", table.loc[part.index].to_csv(index=False))


def _entries(manifest: Manifest, names: dict[str, str]) -> pd.DataFrame:
    """Return the columns of Data_Entry_2017, and synthetic and seed."""
    rows = manifest.rows
    called = {column: name.replace("No_Finding", "No Finding")
              for column, name in known_findings(manifest.findings, NIH_FINDINGS).items()}  # fmt: skip
    positive = rows[list(manifest.findings)] >= 0.5
    present = [[called.get(name, name) for name in positive.columns[row]] for row in positive.to_numpy()]
    table = pd.DataFrame(
        {
            "Image Index": [names[str(uid)] for uid in rows.index],
            "Finding Labels": ["|".join(one) or "No Finding" for one in present],
            "Patient ID": rows["patient_id"],
            "Patient Age": rows["age"] if "age" in rows else float("nan"),
            "Patient Gender": rows["sex"] if "sex" in rows else "",
            "View Position": rows["view"],
            "synthetic": rows["synthetic"].astype(int) if "synthetic" in rows else 0,
        },
        rows.index,
    )
    return table.assign(seed=whole_seeds(rows)) if "seed" in rows else table
