"""Every check keeps one contract: a Finding an image, in uid order, pure, passed exactly when value meets limit."""

import inspect
import pkgutil
from collections.abc import Sequence
from importlib import import_module

import pandas as pd
import pytest
import torch

import medlt.checks
from medlt.checks.bands import Band, InBand
from medlt.checks.consistency import LabelConsistency
from medlt.checks.near_copy import near_copy
from medlt.checks.sanity import Duplicate, Finite, Flat, Saturated
from medlt.checks.target_label import TargetLabelCheck
from medlt.types import Batch, Check

REAL = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def parents(uids: Sequence[str]) -> torch.Tensor:
    return REAL[[int(uid) for uid in uids]]


def flat(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(images.flatten(1) - images.flatten(1).mean(1, keepdim=True))


def verifier(images: torch.Tensor) -> torch.Tensor:
    return images.nan_to_num(0).mean((2, 3)).repeat(1, 2)


CHECKS = [
    Finite(),
    Flat(),
    Saturated(),
    Duplicate(parents),
    TargetLabelCheck(),
    LabelConsistency((verifier, verifier), {"Mass": 0.45, "Hernia": torch.nan}, ("Mass", "Hernia")),
    InBand((verifier, verifier), [{"Mass": Band(torch.full((2, 2), 0.5).numpy(), 0.02)}] * 2),
    near_copy((flat,), torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(7)), REAL, 0.05),
]


def planted() -> Batch:
    """Noise, a copy, black, white, NaN, one infinite pixel, a stripe; uids in no alphabetical order.

    Labels from surely not to surely, and an unknown one.
    """
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    images[1], images[2], images[3], images[4], images[5, 0, 0, 0] = REAL[1], 0, 1, torch.nan, torch.inf
    images[6] = torch.linspace(0, 1, 16)
    uids = pd.Index([f"s{n}" for n in (5, 3, 8, 1, 9, 2, 7, 4)], name="uid")
    rows = {"finding": ["Mass"] * 7 + ["Hernia"], "fold": [0, 1] * 4, "parents": [["0", "1"]] * 8, "slot": range(8)}
    results = {"Mass": [1, 0.9, 0.8, 0.79, 0, torch.nan, 1, 1], "Hernia": [0.0] * 7 + [torch.nan]}
    return Batch(pd.DataFrame(rows, index=uids), images, pd.DataFrame(results, index=uids))


def test_the_contract_covers_every_check() -> None:
    modules = [import_module(f"medlt.checks.{result.name}") for result in pkgutil.iter_modules(medlt.checks.__path__)]
    classes = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    checks = {kind for kind in classes if hasattr(kind, "passes_above") and kind.__module__.startswith("medlt.checks")}
    assert checks == {type(check) for check in CHECKS}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_contract(check: Check) -> None:
    given = planted()
    before = given.images.clone()
    result = check(given)
    assert [f.uid for f in result] == list(given.rows.index)
    assert {f.check for f in result} == {check.name}  # type: ignore[attr-defined]
    for f in result:
        meets = f.value >= f.limit if check.passes_above else f.value <= f.limit  # type: ignore[attr-defined]
        assert f.passed is meets
        assert f.passed or f.reason
    assert {f.passed for f in result} == {True, False}
    assert repr(check(given)) == repr(result)
    assert torch.equal(given.images.nan_to_num(9), before.nan_to_num(9))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_an_empty_batch_has_no_findings(check: Check) -> None:
    given = planted()
    assert list(check(Batch(given.rows[:0], given.images[:0], given.labels[:0]))) == []
