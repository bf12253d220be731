"""Every check keeps one contract: a Finding an image, in uid order, pure, passed exactly when value meets limit."""

from collections.abc import Sequence

import pandas as pd
import pytest
import torch

from medlt.checks.consistency import LabelConsistency
from medlt.checks.sanity import Duplicate, Finite, Flat, Saturated
from medlt.types import Batch, Check

REAL = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def parents(uids: Sequence[str]) -> torch.Tensor:
    return REAL[[int(uid) for uid in uids]]


def judge(images: torch.Tensor) -> torch.Tensor:
    return images.nan_to_num(0).mean((2, 3)).repeat(1, 2)


CHECKS = [
    Finite(),
    Flat(),
    Saturated(),
    Duplicate(parents),
    LabelConsistency((judge, judge), {"Mass": 0.45, "Hernia": torch.nan}, ("Mass", "Hernia")),
]


def planted() -> Batch:
    """Noise, a copy, black, white, NaN, one infinite pixel, a stripe; uids in no alphabetical order."""
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    images[1], images[2], images[3], images[4], images[5, 0, 0, 0] = REAL[1], 0, 1, torch.nan, torch.inf
    images[6] = torch.linspace(0, 1, 16)
    uids = pd.Index([f"s{n}" for n in (5, 3, 8, 1, 9, 2, 7, 4)], name="uid")
    rows = {"finding": ["Mass"] * 7 + ["Hernia"], "fold": [0, 1] * 4, "parents": "0 1", "slot": range(8)}
    return Batch(pd.DataFrame(rows, index=uids), images, pd.DataFrame(index=uids))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_contract(check: Check) -> None:
    given = planted()
    before = given.images.clone()
    found = check(given)
    assert [f.uid for f in found] == list(given.rows.index)
    assert {f.check for f in found} == {check.name}  # type: ignore[attr-defined]
    for f in found:
        meets = f.value >= f.limit if check.passes_above else f.value <= f.limit  # type: ignore[attr-defined]
        assert f.passed is meets
        assert f.passed or f.reason
    assert {f.passed for f in found} == {True, False}
    assert repr(check(given)) == repr(found)
    assert torch.equal(given.images.nan_to_num(9), before.nan_to_num(9))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_an_empty_batch_has_no_findings(check: Check) -> None:
    given = planted()
    assert list(check(Batch(given.rows[:0], given.images[:0], given.labels[:0]))) == []
