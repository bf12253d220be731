"""Folds keep patients whole and findings even; a verifier is never trained on the fold it verifies."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.checks.folds import cross_fit, folds
from medlt.types import InputError

FINDINGS = ["Mass", "Nodule", "Hernia"]


def cohort(seed: int, patients: int = 60) -> tuple[pd.Series, pd.DataFrame]:
    """Patients of 1-4 images, findings of falling prevalence, some labels unknown."""
    rng = np.random.default_rng(seed)
    owner = np.repeat([f"p{n}" for n in range(patients)], rng.integers(1, 5, patients))
    uids = pd.Index([f"u{n}" for n in range(len(owner))], name="uid")
    labels = (rng.random((len(owner), 3)) < [0.4, 0.15, 0.05]).astype(float)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    return pd.Series(owner, index=uids), pd.DataFrame(labels, index=uids, columns=FINDINGS)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 5))
def test_patients_stay_whole_and_findings_even(seed: int, k: int) -> None:
    patients, labels = cohort(seed)
    fold = folds(patients, labels, k, seed)
    assert fold.index.equals(patients.index)
    assert set(fold) == set(range(k))
    assert (fold.groupby(patients).nunique() == 1).all()
    held = (labels == 1).groupby(patients).any()
    per_fold = held.groupby(fold.groupby(patients).first()).sum()
    rarest = held.sum().idxmin()
    assert per_fold[rarest].max() - per_fold[rarest].min() <= 1
    assert (per_fold.max() - per_fold.min() <= 1 + per_fold.mean() / 2).all()


def test_findings_of_a_patient_placed_before_count() -> None:
    """Two hold a nodule, one of them placed early for its hernia: dealing patients out in turn would join them."""
    table = [[0, 1, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    names = ["a", "b", "c"]
    labels = pd.DataFrame(table, index=names, columns=["Mass", "Nodule", "Hernia", "Edema"])
    for seed in range(10):
        fold = folds(pd.Series(names, index=names), labels, 2, seed)
        assert fold["a"] != fold["c"]


def test_folds_follow_the_seed_and_not_the_row_order() -> None:
    patients, labels = cohort(1)
    fold = folds(patients, labels, 3, 0)
    pd.testing.assert_series_equal(fold, folds(patients, labels, 3, 0))
    assert not fold.equals(folds(patients, labels, 3, 1))
    order = np.random.default_rng(0).permutation(len(patients))
    shuffled = folds(patients.iloc[order], labels.iloc[order], 3, 0)
    pd.testing.assert_series_equal(fold, shuffled.loc[fold.index])


def test_too_few_patients_are_refused() -> None:
    patients, labels = cohort(2, patients=2)
    with pytest.raises(InputError, match="2 patients are too few for 3 folds"):
        folds(patients, labels, 3, 0)


class Remembering:
    """A verifier that notes every image it is trained on and every image it rates; images hold their number."""

    def __init__(self, uids: Sequence[str]) -> None:
        self.trained, self.rated = set(uids), set[str]()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        numbers = images[:, 0, 0, 0].long().tolist()
        self.rated |= {f"u{n}" for n in numbers}
        return torch.tensor([[n, 2 * n, 3 * n] for n in numbers]).float()


def test_no_verifier_is_trained_on_its_own_fold() -> None:
    patients, labels = cohort(3)
    fold = folds(patients, labels, 3, 0)

    def images(uids: Sequence[str]) -> torch.Tensor:
        return torch.tensor([float(uid[1:]) for uid in uids]).view(-1, 1, 1, 1)

    rated_images = []

    def train(uids: Sequence[str], k: int) -> Remembering:
        rated_images.append(k)
        return Remembering(uids)

    result = cross_fit(fold, images, train, FINDINGS)
    assert rated_images == [0, 1, 2]
    for k, verifier in enumerate(result.verifiers):
        assert isinstance(verifier, Remembering)
        own = set(fold.index[fold == k])
        assert verifier.rated == own
        assert verifier.trained == set(fold.index) - own
        assert not set(patients[list(verifier.trained)]) & set(patients[list(own)])
    assert result.held_out.index.equals(fold.index)
    numbers = np.array([float(uid[1:]) for uid in fold.index])
    np.testing.assert_array_equal(result.held_out.to_numpy(), numbers[:, None] * [1, 2, 3])
