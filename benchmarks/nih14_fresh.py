"""ChestX-ray14 with a test set of other patients, for an arm that was named beforehand.

    python benchmarks/nih14_fresh.py DATA/nih14 runs/nih14_fresh
    medlt evaluate nih14/fresh_verdict

Train and validation rows are those of nih14/verdict. The test rows are all images of the cut that nih14/verdict does
not use: train images outside the long-tailed subset, and images that only `nih14_mini_64.npz` holds, at 64 px. An
image in both is recognised by its patient and a correlation above 0.97 at 64 px. Patients with an image in
nih14/verdict are left out, so no patient of the fresh test set had a part in its training or its choices.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medlt.files import atomic, write_text

SIDE, SAME, SPLITS = 64, 0.97, ("train", "val", "test")
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
    same = [bool((b[owners == who] @ a[i] > SAME * a.shape[1]).any()) for i, who in enumerate(patients)]
    return np.array(same, dtype=bool)


def _small_only(folder: Path, table: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Rows of the images that only the small file has, which are written to `out`."""
    real, owners = np.stack([_small(folder / path) for path in table["path"]]), _number(table["patient_id"])
    rows = []
    with np.load(folder / f"nih14_mini_{SIDE}.npz", allow_pickle=False) as held:
        names = [str(name) for name in held["classes"]]
        for split in SPLITS:
            images, labels, patients = (held[f"{split}_{name}"] for name in ("images", "labels", "patient"))
            for i in np.flatnonzero(~_known(images, patients, real, owners)):
                path = f"images/{split}_{i:04d}.png"
                with atomic(out / path) as temporary:
                    Image.fromarray(images[i]).save(temporary, "PNG")
                known = dict(zip(names, labels[i].tolist(), strict=True))
                own = {"image_id": f"nih64_{split}_{i:04d}", "patient_id": f"nih_{patients[i]:05d}", "path": path}
                rows.append(own | known | {NO_FINDING: int(not any(known.values())), "lt_train": 0})
    return pd.DataFrame(rows)


def main(folder: Path, out: Path) -> None:
    """Write out/labels.csv and the images it needs beside those of `folder`."""
    table = pd.read_csv(folder / "labels.csv")
    used = (table["lt_train"] == 1) | table["split"].isin(["val", "test"])
    used = set(_number(table.loc[used, "patient_id"]))
    whole = table.assign(path=[str((folder / path).resolve()) for path in table["path"]])
    others = pd.concat([whole[~used], _small_only(folder, table, out)])
    fresh = others[~pd.Series(_number(others["patient_id"]), others.index).isin(used)].assign(split="test")
    kept = whole[used & (table["split"] != "test")]
    write_text(out / "labels.csv", pd.concat([kept, fresh]).to_csv(index=False))
    names = [name for name in table.columns if name in fresh and fresh[name].isin([0, 1]).all() and name != "lt_train"]
    print(f"{len(fresh)} fresh test images of {fresh['patient_id'].nunique()} patients")
    print(fresh[names].sum().to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
