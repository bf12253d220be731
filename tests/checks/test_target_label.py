"""The target label: an image counts for its target finding only if its own label states it."""

import pandas as pd
import pytest
import torch

from medlt.checks.target_label import TargetLabelCheck
from medlt.types import Batch, InputError


def batch(labels: dict[str, list[float]], findings: list[str]) -> Batch:
    uids = pd.Index([f"s{n}" for n in range(len(findings))], name="uid")
    rows = pd.DataFrame({"finding": findings}, index=uids)
    return Batch(rows, torch.zeros(len(uids), 1, 4, 4), pd.DataFrame(labels, index=uids, dtype="float32"))


@pytest.mark.parametrize(
    ("label", "passes"), [(1.0, True), (0.8, True), (0.79, False), (0.0, False), (float("nan"), False)]
)
def test_most_of_the_evidence_must_be_there(label: float, passes: bool) -> None:
    (result,) = TargetLabelCheck()(batch({"Mass": [label]}, ["Mass"]))
    assert result.passed is passes
    assert result.value == pytest.approx(label, nan_ok=True)
    assert bool(result.reason) is not passes


def test_each_image_is_checked_for_its_own_finding() -> None:
    result = TargetLabelCheck()(batch({"Mass": [1, 1], "Hernia": [0, 0]}, ["Mass", "Hernia"]))
    assert [(f.uid, f.passed) for f in result] == [("s0", True), ("s1", False)]


def test_without_a_finding_there_is_nothing_to_assert() -> None:
    whole = batch({"Mass": [1]}, ["Mass"])
    with pytest.raises(InputError, match="plan rows lack the column 'finding'"):
        TargetLabelCheck()(Batch(whole.rows.drop(columns="finding"), whole.images, whole.labels))
