"""Lesions: where their pixels are, how they vary, and what is never guessed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medlt.data.regions import Regions
from medlt.localise.given import Given, OnSide
from medlt.localise.measure import GRID, Localisation, Quality
from medlt.localise.prior import LEAST, PositionPrior
from medlt.localise.trust import Trust
from medlt.rng import numpy_generator
from medlt.synthesis.lesions import USUAL, LesionMasks, Move, Variety, usualness, visible

SIDE = 64


def disc(row: float, column: float, radius: float = 5.0) -> np.ndarray:
    at = np.arange(SIDE)
    return (at[:, None] - row) ** 2 + (at[None] - column) ** 2 <= radius**2


def centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)


def test_no_move_changes_nothing() -> None:
    image, mask = torch.rand(SIDE, SIDE), disc(20, 30)
    same, cover = Move().apply(image, mask)
    assert torch.equal(same, image)
    assert np.array_equal(cover, mask)
    assert np.array_equal(Move().places(mask), np.argwhere(mask))


def test_a_shift_by_whole_pixels_is_exact() -> None:
    image, mask = torch.rand(SIDE, SIDE), disc(20, 30)
    shifted, cover = Move(down=3 / SIDE, right=-7 / SIDE).apply(image, mask)
    assert np.array_equal(cover, np.roll(mask, (3, -7), (0, 1)))
    torch.testing.assert_close(shifted[3:, :-7], image[:-3, 7:], atol=1e-5, rtol=1e-5)


def test_a_reflection_is_the_mirror_image() -> None:
    image, mask = torch.rand(SIDE, SIDE), disc(20, 12)
    mirrored, cover = Move(reflected=True).apply(image, mask)
    assert np.array_equal(cover, mask[:, ::-1])
    torch.testing.assert_close(mirrored, image.flip(1), atol=1e-5, rtol=1e-5)


def test_a_rotation_turns_about_the_centre_of_the_lesion() -> None:
    """A bar turned by a right angle is the upright bar at the same place."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:25, 10:31] = True
    upright = np.zeros_like(mask)
    upright[12:33, 18:23] = True
    for angle in (90.0, -90.0):
        _, cover = Move(rotation=angle).apply(torch.rand(SIDE, SIDE), mask)
        assert np.array_equal(cover, upright)
    row = Move(rotation=90.0).places(np.eye(1, SIDE**2, 20 * SIDE + 40, dtype=bool).reshape(SIDE, SIDE))
    assert row.tolist() == [[20, 40]]


@given(st.floats(0.7, 1.5), st.floats(-30, 30), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.booleans())
def test_the_moved_mask_lies_where_its_places_say(
    scale: float, rotation: float, down: float, right: float, reflected: bool
) -> None:
    mask, move = disc(30, 25), Move(scale, rotation, down, right, reflected)
    _, cover = move.apply(torch.zeros(SIDE, SIDE), mask)
    places = move.places(mask)
    assert np.abs(centre(cover) - places.mean(0)).max() < 0.6
    radii = np.sqrt([cover.sum(), mask.sum()]) / np.pi**0.5
    assert abs(radii[0] - scale * radii[1]) < 0.75  # px; whole pixels cannot show a smaller change of the radius
    assert np.ptp(places, axis=0).max() / np.ptp(np.argwhere(mask), axis=0).max() == pytest.approx(scale, rel=0.15)


def test_what_leaves_the_image_is_not_visible() -> None:
    mask = disc(30, 5)
    assert visible(Move().places(mask), SIDE) == 1.0
    assert visible(Move(right=-5 / SIDE).places(mask), SIDE) == pytest.approx(mask[:, 5:].sum() / mask.sum())
    assert visible(Move(right=-0.5).places(mask), SIDE) == 0.0


def test_the_usual_place_is_read_where_the_lesion_comes_to_lie() -> None:
    prior = np.zeros((8, 8))
    prior[2, 5] = 1.0  # rows 16 to 23, columns 40 to 47
    assert usualness(disc(20, 44, 2).nonzero() and np.argwhere(disc(20, 44, 2)).astype(float), SIDE, prior) == 1.0
    assert usualness(Move(down=0.5).places(disc(20, 44, 2)), SIDE, prior) == 0.0
    assert usualness(Move(right=1.0).places(disc(20, 44, 2)), SIDE, prior) == 0.0


def drawn(n: int, prior: np.ndarray | None, symmetric: bool, variety: Variety | None = None) -> list[Move]:
    chosen = variety or Variety(shift=0.3)
    return [chosen.draw(numpy_generator("moves", i), disc(20, 20, 3), prior, symmetric) for i in range(n)]


def test_lesions_vary_within_their_limits_and_place() -> None:
    prior = np.zeros((8, 8))
    prior[1:4, 1:4] = 1.0
    moves = drawn(200, prior, True)
    scales, turns = ([getattr(one, name) for one in moves] for name in ("scale", "rotation"))
    room = 1 - 7 / 32  # the lesion has 7 of 64 pixels, and 32 leave none
    assert 1.25**-room <= min(scales) < 1.23**-room
    assert 1.23**room < max(scales) <= 1.25**room
    assert -10 * room <= min(turns) < -9.5 * room
    assert max(abs(one.down) for one in moves) <= 0.3 * room
    assert max(abs(one.down) for one in moves) > 0.05
    assert 60 < sum(one.reflected for one in moves) < 140
    shown = [usualness(one.places(disc(20, 20, 3)), SIDE, prior) for one in moves if not one.reflected]
    assert min(shown) >= USUAL


def test_a_lesion_moves_only_where_its_usual_place_is_known() -> None:
    assert {(one.down, one.right) for one in drawn(20, None, True)} == {(0.0, 0.0)}
    nowhere = np.zeros((8, 8))
    nowhere[7, 7] = 1.0  # an unusual lesion may go to any place as usual as its own
    assert len({one.down for one in drawn(20, nowhere, False)}) == 20
    alone = np.zeros((SIDE, SIDE))
    alone[disc(20, 20, 3)] = 1.0
    assert all(usualness(one.places(disc(20, 20, 3)), SIDE, alone) >= USUAL or one.down == 0
               for one in drawn(50, alone, False))  # fmt: skip


def test_a_large_lesion_follows_the_anatomy_and_stays() -> None:
    prior, wide = np.ones((8, 8)), np.zeros((SIDE, SIDE), bool)
    wide[20:24, 16:48] = True
    moves = [Variety(shift=0.3).draw(numpy_generator("moves", i), wide, prior, True) for i in range(20)]
    assert {(one.scale, one.rotation, one.down, one.right) for one in moves} == {(1.0, 0.0, 0.0, 0.0)}
    assert {one.reflected for one in moves} == {True, False}


def test_a_lesion_with_a_side_is_never_reflected() -> None:
    assert not any(one.reflected for one in drawn(50, None, False))
    assert not any(one.reflected for one in drawn(50, None, True, Variety(reflect=False)))


@pytest.mark.parametrize(("sides", "symmetric"), [("ab", True), ("aa", False)])
def test_the_cases_of_other_patients_say_whether_a_finding_has_a_side(sides: str, symmetric: bool) -> None:
    box = {"a": np.array([[0.1, 0.4, 0.3, 0.6]]), "b": np.array([[0.7, 0.4, 0.9, 0.6]])}
    boxes = {f"u{i}": box[sides[i % 2]] for i in range(20)}
    prior = PositionPrior(Regions(boxes={"Mass": boxes}), frozenset(boxes), {}, (8, 8))
    assert prior.symmetric("somebody", "Mass") is symmetric
    few = PositionPrior(Regions(boxes={"Mass": boxes}), frozenset(list(boxes)[:LEAST]), {}, (8, 8))
    assert not few.symmetric("u0", "Mass")  # its own case does not count
    assert not few.symmetric("u0", "Nodule")


BOXES = {"boxed": np.array([[0.5, 0.25, 0.75, 0.5]]), "both": np.array([[0.1, 0.1, 0.3, 0.3], [0.7, 0.1, 0.9, 0.3]])}


def maps(uids: list[str], finding: str) -> Tensor:
    """A peak for "mapped", a flat map for "flat", nothing known of others."""
    made = torch.full((len(uids), 8, 8), torch.nan)
    for i, uid in enumerate(uids):
        if uid in ("mapped", "flat"):
            made[i] = 0.5
        if uid == "mapped":
            made[i, 4:6, 1:3] = 1.0
    return made


def masks(measured: dict[tuple[str, str], Quality] | None = None, **changed: object) -> LesionMasks:
    regions = Regions(boxes={"Mass": BOXES})
    whole = OnSide(Trust({}, (8, 8)), {"Mass": {"sided": "left"}}, (8, 8))
    stages = {"box": Given(regions, "box", (8, 8)), "side": whole, "image": maps}
    return LesionMasks(Localisation(Trust(stages, (8, 8)), regions, measured or {}), SIDE, **changed)  # type: ignore[arg-type]


def test_nobody_guesses_a_place() -> None:
    usable = {uid: masks().usable(uid, "Mass") for uid in ("boxed", "both", "mapped", "flat", "sided", "unknown")}
    assert usable == {"boxed": True, "both": True, "mapped": True, "flat": False, "sided": False, "unknown": False}
    half = {uid: masks(half=True).usable(uid, "Mass") for uid in usable}
    assert half == {"boxed": True, "both": False, "mapped": False, "flat": False, "sided": True, "unknown": False}
    assert masks(half=True, side="left").usable("unknown", "Mass")
    chance = Quality(0.5, 0.4, 0.6, {f"p{i}": GRID for i in range(9)})
    assert not masks({("image", "Mass"): chance}).usable("mapped", "Mass")


def test_a_given_box_is_taken_whole_and_a_map_by_its_area() -> None:
    box = masks().taken("boxed", "Mass", 0.01)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[16:32, 32:48] = True
    assert np.array_equal(box.mask, expected)
    assert torch.equal(box.cells, torch.from_numpy(expected[::8, ::8]))
    top = masks().taken("mapped", "Mass", 4 / 64)
    assert np.array_equal(top.mask, np.kron(top.cells.numpy(), np.ones((8, 8), bool)))
    assert top.cells.nonzero().tolist() == [[4, 1], [4, 2], [5, 1], [5, 2]]


def test_the_patients_left_is_the_right_half() -> None:
    right_half = np.zeros((SIDE, SIDE), bool)
    right_half[:, SIDE // 2 :] = True
    for uid in ("boxed", "sided"):
        assert np.array_equal(masks(half=True).taken(uid, "Mass", 0.1).mask, right_half)
    assert np.array_equal(masks(half=True, side="right").taken("boxed", "Mass", 0.1).mask, ~right_half)
    assert math.isclose(float(masks(half=True).taken("sided", "Mass", 0.1).cells.float().mean()), 0.5)
