"""How good a stage is, measured on known regions: closed forms, and what follows for labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.data.regions import Regions
from medlt.localise.measure import FEWEST, Localisation, Quality, best_stage, measure, quality
from medlt.localise.trust import Trust
from medlt.rng import numpy_generator

UIDS = [f"u{i}" for i in range(12)]
PATIENTS = {uid: uid for uid in UIDS}
HALF = Regions(boxes={"Mass": {uid: np.array([[0.0, 0.0, 0.5, 1.0]]) for uid in UIDS[:10]}})


def left(uids: Sequence[str], finding: str) -> Tensor:
    """A perfect map of HALF."""
    maps = torch.zeros(len(uids), 4, 4)
    maps[..., :2] = 1.0
    return maps


def flat(uids: Sequence[str], finding: str) -> Tensor:
    return torch.full((len(uids), 4, 4), 0.5)


def noise(uids: Sequence[str], finding: str) -> Tensor:
    return torch.stack([torch.rand(4, 4, generator=torch.Generator().manual_seed(UIDS.index(u))) for u in uids])


def rng(stage: str, finding: str) -> np.random.Generator:
    return numpy_generator(stage, finding)


def test_perfect_inverse_constant_and_random_maps() -> None:
    stages = {"left": left, "right": lambda u, f: 1 - left(u, f), "flat": flat, "noise": noise}
    measured = measure(stages, HALF, UIDS, ("Mass", "Nodule"), PATIENTS, rng)
    assert set(measured) == {(name, "Mass") for name in stages}
    assert measured["left", "Mass"].auroc == measured["left", "Mass"].low == 1.0
    assert measured["right", "Mass"].auroc == 0.0
    assert measured["flat", "Mass"].auroc == 0.5
    assert measured["noise", "Mass"].low < 0.5
    assert {one.patients for one in measured.values()} == {10}
    assert [measured[name, "Mass"].uninformative for name in stages] == [False, True, True, True]


def test_too_few_patients_or_unknown_maps_are_unmeasured() -> None:
    few = {uid: "p" for uid in UIDS} | {UIDS[i]: f"p{i}" for i in range(FEWEST - 2)}
    assert quality(left, HALF, UIDS, "Mass", few, rng("", "")) is None
    assert quality(left, HALF, UIDS[: FEWEST - 1], "Mass", PATIENTS, rng("", "")) is None
    assert quality(lambda u, f: left(u, f) * torch.nan, HALF, UIDS, "Mass", PATIENTS, rng("", "")) is None
    assert quality(left, HALF, UIDS, "Nodule", PATIENTS, rng("", "")) is None
    assert quality(left, HALF, UIDS, "Mass", PATIENTS, rng("", "")) is not None


@pytest.mark.parametrize(
    ("auroc", "low", "expected"),
    [(1.0, 0.9, 1.0), (0.75, 0.6, 0.5), (0.75, 0.5, math.nan), (0.5, 0.4, math.nan), (0.2, 0.1, math.nan)],
)
def test_reliability(auroc: float, low: float, expected: float) -> None:
    assert Quality(auroc, low, 1.0, 9).reliability == pytest.approx(expected, nan_ok=True)


def test_a_given_region_is_sure_a_measured_map_is_as_good_as_measured_and_the_rest_is_unknown() -> None:
    where = Localisation(Trust({}, (4, 4)), HALF, {("image", "Mass"): Quality(0.9, 0.8, 1.0, 9)})
    stages, findings = (
        ["mask", "box", "image", "image", "code", "none"],
        ["Mass", "Nodule", "Mass", "Nodule", "Mass", ""],
    )
    assert where.reliability(stages, findings) == pytest.approx([1, 1, 0.8, math.nan, math.nan, math.nan], nan_ok=True)
    assert where.is_measured(stages, findings).tolist() == [True, True, True, False, False, False]
    truth = where.truth(["u0", "u11", "u0"], ["Mass", "Mass", "Nodule"])
    assert truth[0].tolist() == [[1.0, 1.0, 0.0, 0.0]] * 4
    assert truth[1:].isnan().all()


def test_the_best_stage_is_the_best_on_findings_that_all_stages_have() -> None:
    good, bad, best = (Quality(value, 0.5, 1.0, 9) for value in (0.8, 0.6, 0.99))
    measured = {("a", "Mass"): bad, ("b", "Mass"): good, ("a", "Nodule"): best}
    assert best_stage(measured, ("a", "b"), "c") == "b"
    assert best_stage(measured, ("b", "a"), "c") == "b"
    assert best_stage({("a", "Mass"): good, ("b", "Mass"): good}, ("a", "b"), "c") == "a"
    assert best_stage({("a", "Mass"): good}, ("a", "b"), "c") == "c"
