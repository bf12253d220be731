"""The table of a cohort: patients with one to six studies, their findings, and a long tail of chosen steepness.

Prevalence falls geometrically from the most frequent finding to the rarest, by `imbalance` in the train split, and by
default by its square root in val and test: the tail's average precision cannot be measured on one or two positives
(benchmarks of long-tailed recognition use balanced test sets for the same reason). Counts are exact up to rounding, and
every finding has a positive row. Positive rows are drawn without replacement with log-odds for age, sex, view and the
findings drawn before (Gumbel top-k), so that co-occurrence is realistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medlt.data.phantom.render import CHRONIC, FINDINGS
from medlt.rng import numpy_generator
from medlt.types import InputError

COMMON_TO_RARE = (
    "Effusion",
    "Support_Device",
    "Cardiomegaly",
    "Atelectasis",
    "Consolidation",
    "Nodule",
    "Mass",
    "Pneumothorax",
    "Pneumoperitoneum",
)
NO_FINDING = "No_Finding"
SPLITS = ("train", "val", "test")
SHARES = (0.6, 0.15, 0.25)

_ODDS: Mapping[str, Mapping[str, float]] = {
    "Cardiomegaly": {"old": 0.8, "AP": 0.3},
    "Mass": {"old": 0.6},
    "Pneumothorax": {"old": -0.4, "male": 0.6},
    "Consolidation": {"AP": 0.5, "Mass": 0.5},
    "Pneumoperitoneum": {"AP": -0.8},
    "Nodule": {"old": 0.4, "Mass": 1.0},
    "Effusion": {"old": 0.5, "AP": 0.6, "Cardiomegaly": 1.1, "Consolidation": 0.9, "Mass": 0.8, "Pneumothorax": 0.4},
    "Atelectasis": {"AP": 0.6, "Effusion": 1.2, "Pneumothorax": 0.7, "Mass": 0.7},
    "Support_Device": {"old": 0.4, "AP": 1.2, "Cardiomegaly": 0.7, "Pneumothorax": 1.0, "Effusion": 0.6},
}
"""Log-odds of a finding, in the order they are drawn; `old` is per 20 years above 55."""


def prevalences(order: Sequence[str], most: float, imbalance: float) -> dict[str, float]:
    """Return prevalences that fall geometrically from `most` for the first of `order` to most / imbalance."""
    steps = np.arange(len(order)) / max(1, len(order) - 1)
    return dict(zip(order, (most * imbalance**-steps).tolist(), strict=True))


def _people(patients: int, seed: int, shares: Sequence[float]) -> pd.DataFrame:
    """Draw one row per patient."""
    draw = numpy_generator(seed, "patients")
    cuts = np.round(np.cumsum(shares[:2]) * patients).astype(int)
    place = draw.permutation(patients)
    return pd.DataFrame(
        {
            "patient_id": [f"PHANTOM-{i:05d}" for i in range(patients)],
            "split": np.asarray(SPLITS)[np.searchsorted(cuts, place, side="right")],
            "sex": np.where(draw.random(patients) < 0.54, "M", "F"),
            "age": np.clip(np.round(draw.normal(58, 17, patients)), 18, 92).astype(int),
            "studies": np.minimum(draw.geometric(0.55, patients), 6),
            "bedridden": draw.random(patients),
        }
    )


def _studies(people: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw one row per study, which is one image; older and sicker patients get AP films in bed."""
    rows = people.loc[people.index.repeat(people["studies"])].reset_index(drop=True)
    rows["study"] = rows.groupby("patient_id").cumcount() + 1
    rows.insert(0, "uid", rows["patient_id"] + "-" + rows["study"].astype(str))
    rng = 0.75 * rows["bedridden"] + 0.25 * numpy_generator(seed, "views").random(len(rows))
    rows["view"] = np.where(rng < 0.28 + 0.003 * (rows["age"] - 50), "AP", "PA")
    return rows[["uid", "patient_id", "study", "split", "view", "sex", "age"]]


def _scores(rows: pd.DataFrame, finding: str, seed: int) -> NDArray[np.float64]:
    """Return log-odds plus Gumbel noise, partly common to a patient's studies; the k largest are a random draw."""
    traits = {"old": (rows["age"] - 55) / 20, "male": rows["sex"] == "M", "AP": rows["view"] == "AP"}
    score = np.zeros(len(rows))
    for cause, odds in _ODDS[finding].items():
        score += odds * (traits[cause] if cause in traits else rows[cause]).to_numpy(float)
    draw = numpy_generator(seed, "labels", finding)
    first = np.unique(rows["patient_id"], return_inverse=True)[1]
    frailty = draw.standard_normal(first.max() + 1)[first] * (2.5 if finding in CHRONIC else 0.8)
    return np.asarray(score + frailty + draw.gumbel(size=len(rows)))


def _label(rows: pd.DataFrame, wanted: Mapping[str, Mapping[str, float]], seed: int) -> pd.DataFrame:
    """Add one 0/1 column per finding with round(prevalence x rows) positives in each split, at least one."""
    for finding in _ODDS:
        score = _scores(rows, finding, seed)
        column = np.zeros(len(rows))
        for split in SPLITS:
            here = np.flatnonzero(rows["split"] == split)
            count = max(1, round(wanted[split][finding] * len(here)))
            column[here[np.argsort(-score[here], kind="stable")[:count]]] = 1
        rows[finding] = column
    rows[NO_FINDING] = (rows[list(FINDINGS)].sum(axis=1) == 0).astype(float)
    return rows


def _check(
    patients: int, order: Sequence[str], most: float, imbalances: Sequence[float], shares: Sequence[float]
) -> None:
    if patients < 20:
        raise InputError(f"phantom cohort of {patients} patients: three splits need at least 20; choose 20 or more")
    if sorted(order) != sorted(FINDINGS):
        raise InputError(f"phantom order {list(order)} must name each of {', '.join(FINDINGS)} once")
    if min(imbalances) < 1:
        raise InputError(f"phantom imbalance {min(imbalances)}: most frequent over rarest; choose 1 or more")
    if not 0 < most <= 0.5:
        raise InputError(f"phantom prevalence of the most frequent finding {most}: choose it in (0, 0.5]")
    if len(shares) != 3 or min(shares) * patients < 1 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"phantom shares {tuple(shares)}: give three (train, val, test) of a patient or more, sum 1")


def cohort(
    patients: int,
    seed: int,
    imbalance: float = 50.0,
    *,
    evaluation_imbalance: float | None = None,
    order: Sequence[str] = COMMON_TO_RARE,
    most: float = 0.3,
    shares: Sequence[float] = SHARES,
) -> pd.DataFrame:
    """Return the table, one row per image: uid, patient_id, study, split, view, sex, age, findings, No_Finding.

    `imbalance` is the prevalence of the most frequent finding over the rarest among train rows, `evaluation_imbalance`
    (default its square root) among val and test rows; `order` names the findings from common to rare, `most` is the
    prevalence of the first. `shares` of the patients go to train, val and test. About 1.8 studies per patient.
    Raises InputError on fewer than 20 patients, an order that is not a permutation of FINDINGS, an imbalance below 1.
    """
    mild = float(np.sqrt(imbalance)) if evaluation_imbalance is None and imbalance >= 1 else evaluation_imbalance
    mild = imbalance if mild is None else mild
    _check(patients, order, most, (imbalance, mild), shares)
    wanted = {split: prevalences(order, most, imbalance if split == "train" else mild) for split in SPLITS}
    rows = _label(_studies(_people(patients, seed, shares), seed), wanted, seed)
    return rows[["uid", "patient_id", "study", "split", "view", "sex", "age", *FINDINGS, NO_FINDING]]
