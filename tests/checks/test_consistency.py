"""Thresholds are out-of-fold medians; the verifier of the row's fold decides; one candidate of a slot is kept."""

import numpy as np
import pandas as pd
import pytest
import torch

from medlt.checks.consistency import LabelConsistency, best_of, thresholds
from medlt.types import Batch, CheckResult, InputError

FINDINGS = ("Mass", "Hernia")


def verifier(mass: float, hernia: float) -> torch.nn.Module:
    """Says the mean brightness times its two factors."""

    class Verifier(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((1, 2, 3))[:, None] * torch.tensor([mass, hernia])

    return Verifier()


def batch(finding: list[str], fold: list[int], value: list[float]) -> Batch:
    uids = pd.Index([f"s{n}" for n in range(len(finding))], name="uid")
    rows = pd.DataFrame({"finding": finding, "fold": fold}, index=uids)
    images = torch.tensor(value).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return Batch(rows, images, pd.DataFrame(0.0, index=uids, columns=list(FINDINGS)))


def test_thresholds_are_medians_of_held_out_positives() -> None:
    uids = [f"u{n}" for n in range(6)]
    held_out = pd.DataFrame({"Mass": [0.1, 0.2, 0.3, 0.4, 0.9, 0.5], "Hernia": 0.3, "Edema": 0.1}, index=uids)
    labels = pd.DataFrame({"Mass": [1, 0, 1, np.nan, 0, 1], "Hernia": [0] * 6, "Edema": [1] * 6}, index=uids)
    result = thresholds(held_out, labels.iloc[::-1])
    assert result["Mass"] == pytest.approx(0.3)
    assert np.isnan(result["Hernia"])
    assert result["Edema"] == pytest.approx(0.1)
    assert thresholds(held_out, labels, quantile=0.75)["Mass"] == pytest.approx(0.4)


def test_half_of_held_out_positives_pass_their_own_threshold() -> None:
    rng = np.random.default_rng(0)
    uids = [f"u{n}" for n in range(101)]
    held_out = pd.DataFrame(rng.random((101, 2)), index=uids, columns=list(FINDINGS))
    limits = thresholds(held_out, pd.DataFrame(1.0, index=uids, columns=list(FINDINGS)))
    assert ((held_out >= limits).sum() == 51).all()


def test_each_row_is_verified_by_its_fold_on_its_own_finding() -> None:
    check = LabelConsistency((verifier(1.0, 0.5), verifier(0.1, 0.2)), {"Mass": 0.3, "Hernia": 0.15}, FINDINGS)
    result = check(batch(["Mass", "Hernia", "Mass", "Hernia"], [1, 0, 0, 1], [0.8, 0.4, 0.4, 0.5]))
    assert [f.value for f in result] == pytest.approx([0.08, 0.2, 0.4, 0.1])
    assert [f.limit for f in result] == [0.3, 0.15, 0.3, 0.15]
    assert [f.passed for f in result] == [False, True, True, False]
    assert [f.uid for f in result] == ["s0", "s1", "s2", "s3"]
    assert "below the limit" in result[0].reason
    assert "Hernia" in result[1].reason


def test_without_a_limit_nothing_passes() -> None:
    (result,) = LabelConsistency((verifier(1, 1),), {"Mass": np.nan}, FINDINGS)(batch(["Mass"], [0], [1.0]))
    assert not result.passed
    assert "no held-out real positive" in result.reason


def test_rows_without_a_fold_are_refused() -> None:
    given = batch(["Mass"], [0], [1.0])
    with pytest.raises(InputError, match="fold"):
        LabelConsistency((verifier(1, 1),), {"Mass": 0.0}, FINDINGS)(
            Batch(given.rows.drop(columns="fold"), given.images, given.labels)
        )


def candidates(*values: tuple[str, int, int, float, bool]) -> tuple[pd.DataFrame, list[CheckResult]]:
    """(finding, slot, candidate, value, passed) -> rows and results of the label check."""
    uids = [f"{name}-{slot}-{n}" for name, slot, n, _, _ in values]
    rows = pd.DataFrame([v[:3] for v in values], columns=["finding", "slot", "candidate"], index=uids)
    results = [CheckResult("label_consistency", u, v[3], 0.5, v[4]) for u, v in zip(uids, values, strict=True)]
    return rows, results


def test_the_candidate_with_the_highest_probability_is_kept() -> None:
    rows, results = candidates(
        ("Mass", 0, 0, 0.6, True),
        ("Mass", 0, 1, 0.9, True),
        ("Mass", 0, 2, 0.7, True),
        ("Mass", 1, 0, 0.4, False),
        ("Hernia", 0, 0, 0.6, True),
        ("Hernia", 0, 1, 0.6, True),
    )
    result = {f.uid: f for f in best_of(rows, results)}
    assert {uid for uid, f in result.items() if f.passed} == {"Mass-0-1", "Hernia-0-0"}
    assert {uid: f.value for uid, f in result.items()} == {
        "Mass-0-0": 3,
        "Mass-0-1": 1,
        "Mass-0-2": 2,
        "Hernia-0-0": 1,
        "Hernia-0-1": 2,
    }
    assert list(result) == [uid for uid in rows.index if uid != "Mass-1-0"]
    shuffled = best_of(rows.iloc[::-1], results[::-1])
    assert {f.uid: f for f in shuffled} == result


def test_a_candidate_that_fails_any_check_is_not_kept_at_any_probability() -> None:
    rows, results = candidates(("Mass", 0, 0, 0.6, True), ("Mass", 0, 1, 0.9, True))
    result = best_of(rows, [*results, CheckResult("flat", "Mass-0-1", 0.0, 0.02, False)])
    assert [(f.uid, f.passed) for f in result] == [("Mass-0-0", True)]
