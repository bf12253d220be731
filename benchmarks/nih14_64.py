"""The cut of ChestX-ray14 with more validation and test images: 260 and 453 instead of 174 and 348, all at 64 px.

    python benchmarks/nih14_64.py DATA/nih14 runs/nih14_64
    medlt evaluate pipelines/nih14_verdict.yaml data.table=runs/nih14_64/labels.csv

`nih14_mini_64.npz` holds images of further patients that labels.csv does not know. Those of its val and test parts are
added, train stays as it is. An image of both is told by its patient and a correlation above 0.97 at 64 px; whoever
has an image in another split is left out. Nothing is read but pixels, labels and patients.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medlt.files import atomic, write_text

SIDE, SAME = 64, 0.97
NO_FINDING = "No_Finding"


def _standardised(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1).astype(np.float32)
    return (flat - flat.mean(1, keepdims=True)) / (flat.std(1, keepdims=True) + 1e-6)


def _small(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def _number(patient: pd.Series) -> np.ndarray:
    return patient.str.extract(r"(\d+)$")[0].astype(int).to_numpy()


def _known(images: np.ndarray, patients: np.ndarray, other: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """bool [N]: whether `other` holds the same image of the same patient."""
    a, b = _standardised(images), _standardised(other)
    return np.array(
        [bool((b[owners == p] @ a[i] > SAME * a.shape[1]).any()) for i, p in enumerate(patients)], dtype=bool
    )


def _added(folder: Path, table: pd.DataFrame, split: str, out: Path) -> pd.DataFrame:
    """Rows of the split's further images, which are written to `out`."""
    with np.load(folder / f"nih14_mini_{SIDE}.npz", allow_pickle=False) as held:
        images, labels, patients = (held[f"{split}_{name}"] for name in ("images", "labels", "patient"))
        names = [str(name) for name in held["classes"]]
    own = table[table["split"] == split]
    real = np.stack([_small(folder / path) for path in own["path"]])
    fresh = ~_known(images, patients, real, _number(own["patient_id"]))
    fresh &= ~np.isin(patients, _number(table.loc[table["split"] != split, "patient_id"]))
    rows = []
    for i in np.flatnonzero(fresh):
        uid, path = f"nih64_{split}_{i:04d}", f"images/nih64_{split}_{i:04d}.png"
        with atomic(out / path) as temporary:
            Image.fromarray(images[i]).save(temporary, "PNG")
        told = dict(zip(names, labels[i].tolist(), strict=True))
        rows.append(
            {"image_id": uid, "path": path, "patient_id": f"nih_{patients[i]:05d}", "split": split, "lt_train": 0}
            | told
            | {NO_FINDING: int(not any(told.values()))}
        )
    return pd.DataFrame(rows)


def main(folder: Path, out: Path) -> Path:
    """Write out/labels.csv and the added images; returns the table."""
    table = pd.read_csv(folder / "labels.csv")
    added = [_added(folder, table, split, out) for split in ("val", "test")]
    whole = pd.concat([table.assign(path=[str((folder / path).resolve()) for path in table["path"]]), *added])
    split = whole.groupby("patient_id")["split"].nunique()
    if (shared := split[split > 1]).any():
        raise SystemExit(f"{len(shared)} patients are in two splits")
    write_text(out / "labels.csv", whole.to_csv(index=False))
    print(whole.groupby("split").agg(images=("image_id", "size"), patients=("patient_id", "nunique")))
    return out / "labels.csv"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
