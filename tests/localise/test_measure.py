"""How good a stage is, measured on known regions: closed forms, and what follows for labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.data.regions import Regions
from medlt.localise.given import Given
from medlt.localise.measure import FEWEST, GRID, Localisation, Quality, best_stage, lesion_curve, measure, quality
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


def seen(auroc: float, low: float, curves: dict[str, np.ndarray] | None = None) -> Quality:
    return Quality(auroc, low, 1.0, {"p": GRID} if curves is None else curves)


@pytest.mark.parametrize(
    ("low", "expected"), [(0.9, False), (0.501, False), (0.5, True), (0.2, True), (math.nan, True)]
)
def test_chance(low: float, expected: bool) -> None:
    assert seen(0.9, low).uninformative is expected


def test_the_lesion_in_falling_order_by_hand() -> None:
    """Values 3, 1, 0, 0 of a sum of 4; each cell also has a quarter of FLOOR: u = .725, .975 and 1 after each value."""
    cells, cover = np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[0.2, 0.5], [0.3, 0.0]])
    first, second = 0.95 * 0.75 + 0.0125, 0.95 + 0.025
    curve = lesion_curve(cells, cover)
    np.testing.assert_allclose(curve, np.interp(GRID, [0, first, second, 1], [0, 0.2, 0.7, 1.0]))
    flat = lesion_curve(np.zeros((2, 2)), cover)
    np.testing.assert_allclose(flat, GRID, atol=1e-12)


def test_a_calibrated_map_knows_what_the_map_is_worth() -> None:
    """A map that is always wrong loses its mass; one that knows nothing spreads it evenly; a right one keeps it."""
    rng = np.random.default_rng(0)
    shown = np.zeros((8, 8))
    shown[:2, :2] = 1.0
    curves = {}
    for kind in ("right", "wrong", "random"):
        own = {}
        for patient in range(200):
            cover = np.zeros((8, 8))
            top, left = rng.integers(0, 7, 2) if kind == "random" else (0, 0) if kind == "right" else (5, 5)
            cover[top : top + 2, left : left + 2] = 1.0
            own[str(patient)] = lesion_curve(shown, cover)
        curves[kind] = own
    made = {kind: seen(0.9, 0.8, own).calibrated(shown) for kind, own in curves.items()}
    for cells in made.values():
        assert cells.sum() == pytest.approx(1.0)
    assert made["right"][:2, :2].sum() > 0.98
    assert made["wrong"][:2, :2].sum() < 0.02
    assert made["random"][:2, :2].sum() == pytest.approx(4 / 64, abs=0.03)
    assert made["random"][4:, 4:].sum() == pytest.approx(0.25, abs=0.03)


def test_the_sum_of_a_calibrated_map_is_the_lesion_that_is_carried_on_average() -> None:
    """On the cells above any value, over the images that measured it: nearly, as L is a mean over maps."""
    rng = np.random.default_rng(1)
    maps = rng.random((40, 8, 8)) ** 4
    covers = np.stack([(one > np.quantile(one, 0.8)) | (rng.random((8, 8)) < 0.05) for one in maps]).astype(float)
    known = seen(0.9, 0.8, {str(i): lesion_curve(*pair) for i, pair in enumerate(zip(maps, covers, strict=True))})
    for share in (0.7, 0.8, 0.95):
        taken = np.stack([one > np.quantile(one, share) for one in maps])
        expected = np.mean([known.calibrated(one)[cells].sum() for one, cells in zip(maps, taken, strict=True)])
        true = np.mean([cover[cells].sum() / cover.sum() for cover, cells in zip(covers, taken, strict=True)])
        assert expected == pytest.approx(true, abs=0.06)


def test_the_own_patient_calibrates_nothing() -> None:
    steep, late = np.minimum(2 * GRID, 1.0), np.maximum(2 * GRID - 1, 0.0)
    known = seen(0.9, 0.8, {"a": steep, "b": late})
    np.testing.assert_allclose(known.curve("a"), late)
    np.testing.assert_allclose(known.curve("somebody"), (steep + late) / 2)


def test_a_given_region_is_sure_a_measured_map_is_worth_what_was_measured_and_the_rest_is_unknown() -> None:
    box = Given(HALF, "box", (4, 4))
    perfect = measure({"image": left}, HALF, UIDS, ("Mass",), PATIENTS, rng)
    where = Localisation(Trust({"box": box, "image": left}, (4, 4)), HALF, perfect, PATIENTS)
    expected = where.expected(["u0", "u11", "u11"], ["Mass", "Mass", "Nodule"])
    assert expected[0].tolist() == [[0.125, 0.125, 0.0, 0.0]] * 4
    assert float(expected[1][:, :2].sum()) > 0.98
    assert expected[2].isnan().all()
    assert where.is_measured(["box", "image", "image"], ["Mass", "Mass", "Nodule"]).tolist() == [True, True, False]
    chance = Localisation(where.trust, HALF, {("image", "Mass"): seen(0.6, 0.5)})
    assert chance.expected(["u11"], ["Mass"]).isnan().all()
    truth = where.truth(["u0", "u11", "u0"], ["Mass", "Mass", "Nodule"])
    assert truth[0].tolist() == [[1.0, 1.0, 0.0, 0.0]] * 4
    assert truth[1:].isnan().all()


def test_the_best_stage_is_the_best_on_findings_that_all_stages_have() -> None:
    good, bad, best = (seen(value, 0.5) for value in (0.8, 0.6, 0.99))
    measured = {("a", "Mass"): bad, ("b", "Mass"): good, ("a", "Nodule"): best}
    assert best_stage(measured, ("a", "b"), "c") == "b"
    assert best_stage(measured, ("b", "a"), "c") == "b"
    assert best_stage({("a", "Mass"): good, ("b", "Mass"): good}, ("a", "b"), "c") == "a"
    assert best_stage({("a", "Mass"): good}, ("a", "b"), "c") == "c"
