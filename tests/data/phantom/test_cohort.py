"""The long tail, the splits and the company findings keep."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.data.phantom.cohort import COMMON_TO_RARE, NO_FINDING, cohort, prevalences
from medlt.data.phantom.render import FINDINGS
from medlt.types import InputError


@pytest.fixture(scope="module")
def large() -> pd.DataFrame:
    return cohort(4000, 3, 50.0)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), patients=st.integers(20, 150), imbalance=st.floats(1, 200))
def test_counts_are_the_prevalences_asked_for(seed, patients, imbalance):
    table = cohort(patients, seed, imbalance)
    for split, ratio in (("train", imbalance), ("val", imbalance**0.5), ("test", imbalance**0.5)):
        rows = table[table["split"] == split]
        for finding, share in prevalences(COMMON_TO_RARE, 0.3, ratio).items():
            assert rows[finding].sum() == max(1, round(share * len(rows)))
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    assert table["uid"].is_unique
    assert table[[*FINDINGS, NO_FINDING]].isin([0.0, 1.0]).all(axis=None)


def test_imbalance_is_met_within_rounding(large):
    train, test = (large[large["split"] == s][list(FINDINGS)].mean() for s in ("train", "test"))
    assert train.max() / train.min() == pytest.approx(50, rel=0.05)
    assert test.max() / test.min() == pytest.approx(50**0.5, rel=0.05)
    assert list(train.sort_values(ascending=False).index) == list(COMMON_TO_RARE)


def test_the_caller_chooses_the_tail_and_the_evaluation():
    order = tuple(reversed(COMMON_TO_RARE))
    table = cohort(1000, 0, 20.0, evaluation_imbalance=1.0, order=order)
    train, test = (table[table["split"] == s][list(order)].mean() for s in ("train", "test"))
    assert train[order[0]] / train[order[-1]] == pytest.approx(20, rel=0.1)
    assert test.max() - test.min() < 1e-9


def test_no_finding_means_none(large):
    assert np.array_equal(large[NO_FINDING] == 1, large[list(FINDINGS)].sum(axis=1) == 0)
    assert 0.2 < large[NO_FINDING].mean() < 0.6


def test_splits_are_60_15_25_of_the_patients(large):
    share = large.groupby("split")["patient_id"].nunique() / large["patient_id"].nunique()
    assert share.to_dict() == pytest.approx({"train": 0.6, "val": 0.15, "test": 0.25}, abs=0.001)


def test_patients_have_several_studies_of_one_sex_and_age(large):
    people = large.groupby("patient_id")
    assert people.size().between(1, 6).all()
    assert 1.5 < people.size().mean() < 2.1
    assert (people[["sex", "age"]].nunique() == 1).all(axis=None)


def odds(table: pd.DataFrame, finding: str, given: pd.Series) -> float:
    inside, outside = table.loc[given, finding].mean(), table.loc[~given, finding].mean()
    return float(inside / (1 - inside) * (1 - outside) / outside)


def test_findings_keep_the_company_they_keep_in_hospital(large):
    assert odds(large, "Effusion", large["Cardiomegaly"] == 1) > 1.5
    assert odds(large, "Atelectasis", large["Effusion"] == 1) > 1.5
    assert odds(large, "Nodule", large["Mass"] == 1) > 1.5
    assert odds(large, "Support_Device", large["view"] == "AP") > 1.5
    assert odds(large, "Cardiomegaly", large["age"] > 60) > 1.3
    assert 0.2 < (large["view"] == "AP").mean() < 0.5


def test_chronic_findings_last_longer_than_acute_ones(large):
    def persistence(finding: str) -> float:
        pairs = large.groupby("patient_id")[finding].agg(["mean", "size"]).query("size > 1 and mean > 0")
        return float((pairs["mean"] > 0.99).mean())

    assert persistence("Cardiomegaly") > persistence("Effusion") + 0.1


def test_the_table_hangs_on_the_seed():
    pd.testing.assert_frame_equal(cohort(60, 7), cohort(60, 7))
    assert not cohort(60, 7).equals(cohort(60, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 19}, "at least 20"),
        ({"imbalance": 0.5}, "choose 1 or more"),
        ({"evaluation_imbalance": 0.2}, "choose 1 or more"),
        ({"most": 0.0}, "in .0, 0.5"),
        ({"order": ("Effusion",)}, "must name each"),
    ],
)
def test_impossible_cohorts_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        cohort(**{"patients": 40, "seed": 0, **arguments})
