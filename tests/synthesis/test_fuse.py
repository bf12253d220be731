"""fuse against its truth table; masks and coins belong to their sample."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.synthesis.fuse import coins, fuse, masks

# T (tail-specific), G (generic in the head image), coin -> parent
TABLE = [
    (0, 0, 0, "b"),
    (0, 0, 1, "a"),
    (0, 1, 0, "b"),
    (0, 1, 1, "b"),
    (1, 0, 0, "a"),
    (1, 0, 1, "a"),
    (1, 1, 0, "b"),
    (1, 1, 1, "a"),
]


def codes(n: int, h: int, w: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 3, 5, h, w, generator=rng).softmax(2) for _ in range(2))
    return a, b


@pytest.mark.parametrize(("tail", "generic", "coin", "parent"), TABLE)
def test_truth_table(tail: int, generic: int, coin: int, parent: str) -> None:
    a, b = codes(1, 1, 1, 0)
    flags = (torch.full((1, 1, 1), bool(flag)) for flag in (tail, generic, coin))
    fused, omega = fuse(a, b, *flags)
    assert torch.equal(fused, a if parent == "a" else b)
    assert bool(omega) is (parent == "a")


def test_table_is_complete() -> None:
    assert [row[:3] for row in TABLE] == list(itertools.product((0, 1), repeat=3))


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_whole_pixel_vectors_move_and_stay_on_the_simplex(n: int, h: int, w: int, seed: int) -> None:
    a, b = codes(n, h, w, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    flags = [torch.rand(n, h, w, generator=rng) < 0.5 for _ in range(3)]
    fused, omega = fuse(a, b, *flags)
    for i, y, x in itertools.product(range(n), range(h), range(w)):
        assert torch.equal(fused[i, :, :, y, x], (a if omega[i, y, x] else b)[i, :, :, y, x])
    torch.testing.assert_close(fused.sum(2), torch.ones(n, 3, h, w))


def test_thresholds_are_each_sample_s_own() -> None:
    cam = torch.full((2, 2, 2), 0.5)
    tail, generic = masks(cam, cam, [0.4, 0.6], [0.6, 0.4])
    assert tail[0].all()
    assert not tail[1].any()
    assert generic[0].all()
    assert not generic[1].any()


def test_a_pixel_at_the_threshold_is_neither_specific_nor_generic() -> None:
    cam = torch.full((1, 1, 1), 0.5)
    tail, generic = masks(cam, cam, [0.5], [0.5])
    assert not tail.any()
    assert not generic.any()


def test_coins_follow_seed_and_probability() -> None:
    both = coins([7, 8], [0.3, 0.3], (40, 50))
    alone = coins([8], [0.3], (40, 50))
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[1])
    share = both.double().mean((1, 2))
    assert ((share - 0.3).abs() < 4 * (0.3 * 0.7 / 2000) ** 0.5).all()
    assert not coins([7], [0.0], (9, 9)).any()
    assert coins([7], [1.0], (9, 9)).all()
