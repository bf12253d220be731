"""The images of a run as torchxrayvision's data sets read them (Cohen et al., MIDL 2022): the form that fits it best.

    NIH_Dataset(imgpath="OUT/images", csvpath="OUT/train.csv", views=["*"], unique_patients=False)
    CheX_Dataset(imgpath="OUT", csvpath="OUT/train.csv", views=["PA", "AP", "L"], unique_patients=False)

NIH_Dataset reads Image Index, Finding Labels (names joined by '|'), Patient ID, Patient Age, Patient Gender and View
Position. CheX_Dataset reads Path, Frontal/Lateral, AP/PA and one column a finding: 1, 0, -1 or blank; it takes the
patient out of `train/patient00001/study1/` or `valid/...`, by the words train and valid in the name of the table. By
default both keep PA images alone, and one a patient. MIMIC_Dataset has the findings of CheX_Dataset and reads .jpg
alone, in which the PNG files of a run would have to be compressed anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from medlt.csv_text import as_csv
from medlt.data.layouts import NIH_FINDINGS, chexpert
from medlt.data.layouts.reading import known_findings
from medlt.data.manifest import Manifest
from medlt.data.views import FRONTAL, projection
from medlt.export.images import copy_images, exported, whole_seeds
from medlt.export.provenance import write_provenance
from medlt.files import write_text
from medlt.types import InputError

READABLE = (".png", ".jpg", ".jpeg")
TABLES: Mapping[str, tuple[str, str]] = {
    "train": ("train", "train"),
    "val": ("valid", "valid"),
    "test": ("valid", "valid_test"),
}
"""Split -> folder and table of CheX_Dataset, which knows train and valid alone."""


def export_torchxrayvision(run: Path, out: Path, real: bool = False, labels: str = "hard") -> None:
    """Write the tables and images of NIH_Dataset or CheX_Dataset, OUT/provenance.json and the run's cards.

    CheX_Dataset is for runs with more of its findings. A label of 0.5 or more is present; there are no soft labels. An
    unknown label is blank for CheX_Dataset, and absent for NIH_Dataset, which has no such label.
    Raises InputError for soft labels, for real images that are not PNG or JPEG, for a '|' in the name of a
    finding, and where there is no image to write.
    """
    if labels == "soft":
        raise InputError("format torchxrayvision has no soft labels; use --labels hard, or format longtailcxr")
    manifest = exported(run, real)
    others = [uid for uid in manifest.rows.index if manifest.file(uid).suffix.lower() not in READABLE]
    if others:
        raise InputError(f"uid {others[0]}: torchxrayvision reads PNG and JPEG only; run `medlt convert` on the source")
    if barred := [name for name in manifest.findings if "|" in name]:
        raise InputError(f"finding {barred[0]!r}: torchxrayvision separates names by '|'; use another format")
    write_provenance(run, out)
    nih, chex = (len(known_findings(manifest.findings, known)) for known in (NIH_FINDINGS, chexpert.FINDINGS))
    (_write_nih if nih >= chex else _write_chexpert)(manifest, out)


def _write_nih(manifest: Manifest, out: Path) -> None:
    """Write OUT/images/ and OUT/SPLIT.csv."""
    table = _entries(manifest, copy_images(manifest, manifest.rows, out / "images"))
    for split, part in manifest.rows.groupby("split"):
        write_text(out / f"{split}.csv", as_csv(table.loc[part.index]))


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
        },
        rows.index,
    )
    return table.join(_origin(rows))


def _write_chexpert(manifest: Manifest, out: Path) -> None:
    """Write OUT/train/patient00001/study1/UID.png, also below OUT/valid/, and a table for each split."""
    rows = manifest.rows
    patient = pd.Series(pd.factorize(rows["patient_id"])[0] + 1, rows.index)
    study = patient.groupby(patient).cumcount() + 1
    for split, part in rows.groupby("split"):
        folder, name = TABLES[str(split)]
        paths = {}
        for uid in part.index:
            place = f"{folder}/patient{patient[uid]:05d}/study{study[uid]}"
            paths[uid] = f"{place}/{copy_images(manifest, part.loc[[uid]], out / place)[str(uid)]}"
        table = pd.DataFrame({"Path": pd.Series(paths)}).join([_about(part), _hard(manifest, part), _origin(part)])
        write_text(out / f"{name}.csv", as_csv(table))


def _about(part: pd.DataFrame) -> pd.DataFrame:
    """Return Sex, Age, Frontal/Lateral and AP/PA. An unknown view counts as frontal, and is neither AP nor PA."""
    view = part["view"].astype("str").str.upper()
    lateral = ~part["view"].map(projection).isin([FRONTAL, ""])
    about = pd.DataFrame({"Frontal/Lateral": lateral.map({True: "Lateral", False: "Frontal"})}, part.index)
    about["AP/PA"] = view.where(view.isin(["AP", "PA"]))
    sex = part["sex"] if "sex" in part else pd.Series("", part.index)
    about.insert(0, "Sex", sex.map({"M": "Male", "F": "Female"}).fillna("Unknown"))
    about.insert(1, "Age", part["age"] if "age" in part else float("nan"))
    return about


def _hard(manifest: Manifest, part: pd.DataFrame) -> pd.DataFrame:
    """Return 1, 0 or blank for each finding of CheXpert; those that the run does not have are blank."""
    named = known_findings(manifest.findings, chexpert.FINDINGS)
    labels = part[list(named)].rename(columns=named).reindex(columns=list(chexpert.FINDINGS))
    return (labels >= 0.5).astype(float).where(labels.notna())


def _origin(rows: pd.DataFrame) -> pd.DataFrame:
    """Return synthetic and, if known, seed."""
    synthetic = rows["synthetic"].astype(int) if "synthetic" in rows else pd.Series(0, rows.index)
    origin = pd.DataFrame({"synthetic": synthetic}, rows.index)
    return origin.assign(seed=whole_seeds(rows)) if "seed" in rows else origin
