"""The usual place of a finding: never the image's own patient, both sides alike unless the cases say otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medlt.data.regions import Regions
from medlt.localise.prior import LEAST, AtUsualPlace, PositionPrior, one_sided, times, usual_place

SIZE = (16, 16)


def corner(right: bool = False, low: bool = False) -> np.ndarray:
    """A box in one corner."""
    left, top = 0.75 * right, 0.75 * low
    return np.array([[left, top, left + 0.25, top + 0.25]])


def prior(boxes: dict[str, np.ndarray], patients: dict[str, str] | None = None) -> PositionPrior:
    return PositionPrior(Regions(boxes={"Mass": boxes}), frozenset(boxes), patients or {}, SIZE)


def test_the_own_patient_is_left_out_of_the_prior() -> None:
    """One patient has a lesion where nobody else has one: their prior knows nothing of it, all others' do."""
    boxes = {f"u{i}": corner() for i in range(8)} | {"own": corner(low=True), "twin": corner(low=True)}
    patients = {uid: uid for uid in boxes} | {"own": "p", "twin": "p"}
    maps = prior(boxes, patients)(["own", "twin", "u0", "somebody"], "Mass")
    below = maps[:, 12:].amax((1, 2))
    assert below[:2].tolist() == [0.0, 0.0]
    assert (below[2:] > 0.05).all()
    assert maps.amax((1, 2)).tolist() == [1.0] * 4
    without = prior({uid: box for uid, box in boxes.items() if uid not in ("own", "twin")})(["x"], "Mass")
    torch.testing.assert_close(maps[:1], without)


def test_a_patient_counts_once() -> None:
    many = {f"a{i}": corner() for i in range(50)} | {f"b{i}": corner(low=True) for i in range(9)}
    patients = {uid: "one" if uid.startswith("a") else uid for uid in many}
    usual = prior(many, patients)(["x"], "Mass")[0]
    assert usual[:4].sum() / usual.sum() == pytest.approx(1 / 10, abs=0.02)


def test_too_few_patients_are_no_prior() -> None:
    boxes = {f"u{i}": corner() for i in range(LEAST)}
    maps = prior(boxes)(["u0", "x"], "Mass")
    assert maps[0].isnan().all()
    assert not maps[1].isnan().any()
    assert prior(boxes)(["x"], "Nodule").isnan().all()
    hidden = PositionPrior(Regions(boxes={"Mass": boxes}), frozenset(["u0"]), {}, SIZE)
    assert hidden(["x"], "Mass").isnan().all(), "cases that may not be used are not used"


@pytest.mark.parametrize(("left", "right", "expected"), [(5, 5, False), (4, 1, False), (10, 0, True), (1, 12, True)])
def test_sides_are_kept_where_the_cases_have_one(left: int, right: int, expected: bool) -> None:
    places = np.zeros((left + right, 8, 8))
    places[:left, 0, 0] = 1
    places[left:, 0, -1] = 1
    assert one_sided(places) is expected
    usual = usual_place(places)
    mirrored = np.allclose(usual, usual[:, ::-1], atol=1e-6)
    assert mirrored is not expected


def test_cases_in_the_middle_have_no_side() -> None:
    places = np.zeros((9, 8, 8))
    places[:, 0, 3:5] = 1
    assert one_sided(places) is False


def test_the_product_of_map_and_prior_by_hand() -> None:
    """(m + .05)(p + .02) - .001, over its largest value 1.05 * 1.02 - .001."""
    maps, usual = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    product = times(maps, usual)[0]
    high = 1.05 * 1.02 - 0.001
    expected = [[1.0, (1.05 * 0.02 - 0.001) / high], [(0.05 * 1.02 - 0.001) / high, 0.0]]
    torch.testing.assert_close(product, torch.tensor(expected))


def test_without_a_prior_the_product_is_unknown_and_the_map_is_not_made() -> None:
    called: list[list[str]] = []

    def inner(uids: list[str], finding: str) -> torch.Tensor:
        called.append(list(uids))
        return torch.ones(len(uids), *SIZE)

    boxes = {f"u{i}": corner() for i in range(LEAST)}
    stage = AtUsualPlace(inner, prior(boxes))  # type: ignore[arg-type]
    maps = stage(["u0", "x"], "Mass")
    assert called == [["x"]]
    assert maps[0].isnan().all()
    torch.testing.assert_close(maps[1], prior(boxes)(["x"], "Mass")[0], atol=0.02, rtol=0)
