"""A cut of ChestX-ray14 in which visible findings are rare by design: the label table of nih14/climb.

    python benchmarks/nih14_climb.py DATA/nih14 runs/nih14_climb_data [--tail Effusion Cardiomegaly] [--keep 20]
    medlt evaluate nih14/climb

Its patients get a new split, by a seed, in shares of 0.45, 0.15 and 0.4 for train, val and test. Of the train patients
with a finding of the tail, `--keep` stay; the images of the others are left out, so no label is changed. Test and
validation images keep all of their positives, as in the long-tailed cuts of MIMIC-CXR-LT and NIH-CXR-LT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from medlt.files import write_text
from medlt.rng import numpy_generator

SHARES = {"train": 0.45, "val": 0.15, "test": 0.4}


def split_of(patients: pd.Series, seed: int) -> pd.Series:
    """Return the split of each row; a patient is in one split."""
    names = np.array(sorted(patients.unique()))
    order = numpy_generator(seed, "climb").permutation(len(names))
    bounds = np.cumsum([round(share * len(names)) for share in list(SHARES.values())[:-1]])
    of = {name: split for split, part in zip(SHARES, np.split(names[order], bounds), strict=True) for name in part}
    return patients.map(of)


def kept(table: pd.DataFrame, finding: str, count: int, seed: int) -> pd.Series:
    """Return which rows stay if `count` train patients keep the finding."""
    train = table[(table["split"] == "train") & (table[finding] == 1)]
    names = np.array(sorted(train["patient_id"].unique()))
    chosen = names[numpy_generator(seed, "climb", finding).permutation(len(names))[:count]]
    return ~table.index.isin(train.index[~train["patient_id"].isin(chosen)])


def main() -> None:
    """Write OUT/labels.csv, with absolute paths of the images."""
    read = argparse.ArgumentParser()
    read.add_argument("folder", type=Path)
    read.add_argument("out", type=Path)
    read.add_argument("--tail", nargs="+", default=["Effusion", "Cardiomegaly"])
    read.add_argument("--keep", type=int, default=20)
    read.add_argument("--seed", type=int, default=1118)
    args = read.parse_args()
    table = pd.read_csv(args.folder / "labels.csv")
    table = table.assign(path=[str((args.folder / path).resolve()) for path in table["path"]])
    table = table.assign(split=split_of(table["patient_id"], args.seed))
    for finding in args.tail:
        table = table[kept(table, finding, args.keep, args.seed)]
    write_text(args.out / "labels.csv", table.to_csv(index=False))
    print(table.groupby("split").agg(images=("path", "size"), patients=("patient_id", "nunique")).to_string())
    names = [name for name in table if table[name].isin([0, 1]).all() and name != "lt_train"]
    print(table.groupby("split")[names].sum().T.to_string())


if __name__ == "__main__":
    main()
