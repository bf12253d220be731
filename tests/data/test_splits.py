"""Splits keep patients whole and rare findings in every part, whatever the order of rows."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.data.splits import SHARES, complete_split, patient_split, stratify

NAMES = ("train", "val", "test")
PARTS = ("train", "test", "val")
"""In the order in which a finding of few patients gets them."""


def cohort(seed: int, patients: int = 300) -> tuple[pd.Series, pd.DataFrame]:
    """Patients of 1-4 images; common findings, some unknown, and rare ones of exactly 1 to 5 patients."""
    rng = np.random.default_rng(seed)
    owner = np.repeat([f"p{n}" for n in range(patients)], rng.integers(1, 5, patients))
    uids = pd.Index([f"u{n}" for n in range(len(owner))], name="uid")
    labels = pd.DataFrame((rng.random((len(owner), 3)) < [0.4, 0.1, 0.03]).astype(float), uids, ["A", "B", "C"])
    labels = labels.mask(rng.random(labels.shape) < 0.1)
    for count in range(1, 6):
        labels[f"rare{count}"] = np.isin(owner, rng.choice(np.unique(owner), count, replace=False)).astype(float)
    return pd.Series(owner, uids), labels


def held(split: pd.Series, patients: pd.Series, labels: pd.DataFrame) -> pd.DataFrame:
    """Positive patients of each finding [finding] in each split [column]."""
    by_patient = (labels == 1).groupby(patients).any()
    return by_patient.groupby(split.groupby(patients).first()).sum().reindex(list(NAMES), fill_value=0).T


def assert_each_part_has_each_finding(counts: pd.DataFrame) -> None:
    for _, row in counts.iterrows():
        for part in PARTS[: int(row.sum())]:
            assert row[part] >= 1, counts


@settings(max_examples=30)
@given(seed=st.integers(0, 100_000))
def test_patients_stay_whole_and_rare_findings_are_everywhere(seed: int) -> None:
    patients, labels = cohort(seed)
    split = patient_split(patients, labels, seed)
    assert (split.groupby(patients).nunique() == 1).all()
    counts = held(split, patients, labels)
    assert_each_part_has_each_finding(counts)
    sizes = split.groupby(patients).first().value_counts()
    for name, share in zip(NAMES, SHARES, strict=True):
        assert abs(sizes[name] - share * 300) <= 0.05 * 300
        assert (counts.loc[["A", "B"], name] - share * counts.loc[["A", "B"]].sum(axis=1)).abs().max() <= 3


def test_three_patients_reach_three_splits_for_every_seed() -> None:
    """A split by chance puts the three in three splits in 6 * 0.7 * 0.1 * 0.2 = 8.4 % of seeds."""
    names = [f"p{n}" for n in range(200)]
    patients = pd.Series(names, names)
    labels = pd.DataFrame({"Hernia": [1.0] * 3 + [0.0] * 197, "Mass": [0.0, 1.0] * 100}, names)
    for seed in range(100):
        assert set(patient_split(patients, labels, seed).iloc[:3]) == set(NAMES)


@settings(max_examples=60)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=3, max_size=7), st.integers(0, 1000))
def test_where_it_is_possible_every_finding_is_in_every_split(table: list[list[bool]], seed: int) -> None:
    """Findings that share patients may exclude one another; all 3^P splits show what is possible."""
    names = [f"p{n}" for n in range(len(table))]
    patients, labels = pd.Series(names, names), pd.DataFrame(table, names, ["A", "B", "C"]).astype(float)
    needed = [(f, p) for f in labels for p in PARTS[: int(labels[f].sum())]]

    def gaps(parts: tuple[str, ...]) -> int:
        seen = {(f, part) for f in labels for part, one in zip(parts, labels[f], strict=True) if one}
        return len(set(needed) - seen)

    fewest = min(gaps(parts) for parts in product(NAMES, repeat=len(table)))
    assert gaps(tuple(patient_split(patients, labels, seed))) == fewest


@settings(max_examples=20)
@given(seed=st.integers(0, 100_000))
def test_the_order_of_rows_does_not_matter_and_the_seed_does(seed: int) -> None:
    patients, labels = cohort(seed, 60)
    split = patient_split(patients, labels, 0)
    order = np.random.default_rng(seed).permutation(len(patients))
    shuffled = patient_split(patients.iloc[order], labels.iloc[order], 0)
    pd.testing.assert_series_equal(split, shuffled.loc[split.index])
    assert not split.equals(patient_split(patients, labels, 1))


@settings(max_examples=30)
@given(seed=st.integers(0, 100_000), share=st.floats(0.05, 0.95))
def test_a_completed_split_keeps_what_is_given(seed: int, share: float) -> None:
    patients, labels = cohort(seed)
    rng = np.random.default_rng(seed)
    before = patients.map(dict(zip(patients.unique(), rng.choice(NAMES, patients.nunique()), strict=True)))
    partly = before.where(rng.random(len(before)) < share)
    split = complete_split(partly, patients, labels, seed)
    known = partly.notna()
    assert split[known].equals(partly[known])
    assert split.notna().all()
    assert (split.groupby(patients).nunique() == 1).all()
    counts, free = held(split, patients, labels), ~patients.isin(patients[known])
    if set(partly.dropna()) == {"test"}:
        return
    reach = (labels[free] == 1).groupby(patients[free]).any().sum()
    for finding, row in counts.iterrows():
        if reach[finding] >= 3:  # its free patients suffice for all three
            assert (row >= 1).all()
    order = rng.permutation(len(patients))
    again = complete_split(partly.iloc[order], patients.iloc[order], labels.iloc[order], seed)
    assert again.loc[split.index].equals(split)


def test_a_test_split_that_is_given_alone_is_whole() -> None:
    patients, labels = cohort(3)
    chosen = patients.isin(patients.unique()[:40])
    split = complete_split(pd.Series("test", patients.index, dtype="str").where(chosen), patients, labels, 0)
    assert (split == "test").equals(chosen)
    sizes = split[~chosen].groupby(patients[~chosen]).first().value_counts(normalize=True)
    assert sizes["val"] == pytest.approx(1 / 8, abs=0.03)


def test_a_share_of_zero_stays_empty_and_unknown_labels_are_no_positives() -> None:
    names = [f"p{n}" for n in range(50)]
    labels = pd.DataFrame({"A": [np.nan] * 25 + [0.0] * 25, "B": ["yes"] * 50}, names)
    part = stratify(pd.Series(names, names), labels, (0.5, 0.0, 0.5), 0)
    assert part.value_counts().to_dict() == {0: 25, 2: 25}
