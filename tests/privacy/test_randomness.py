"""The distribution of private noise, and who can draw it again."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medlt.privacy.dpsgd import randomness
from medlt.privacy.dpsgd.randomness import BITS, PIECE, Randomness, Secure, Seeded, box_muller

BOTH = pytest.mark.parametrize("source", [Secure(), Seeded(3)], ids=["secure", "seeded"])
COUNT = 400_000
CHANCE = 1e-6
"""Of a false alarm, in each test."""


@BOTH
def test_normal_is_normal(source: Randomness) -> None:
    drawn = source.normal((COUNT,), torch.float64).numpy()
    assert stats.kstest(drawn, "norm").pvalue > CHANCE
    z = stats.norm.isf(CHANCE / 2)
    assert abs(drawn.mean()) < z / math.sqrt(COUNT)
    assert abs(drawn.var() - 1) < z * math.sqrt(2 / COUNT)
    assert abs(stats.skew(drawn)) < z * math.sqrt(6 / COUNT)
    assert abs(stats.kurtosis(drawn)) < z * math.sqrt(24 / COUNT)
    for limit in (2.0, 3.0, 4.0):
        for side in (drawn > limit, drawn < -limit):
            low, high = stats.binom.interval(1 - CHANCE, COUNT, stats.norm.sf(limit))
            assert low <= side.sum() <= high


@BOTH
def test_neighbours_halves_and_calls_do_not_depend_on_each_other(source: Randomness) -> None:
    first, second = source.normal((COUNT,), torch.float64), source.normal((COUNT,), torch.float64)
    limit = float(stats.norm.isf(CHANCE / 2)) / math.sqrt(COUNT / 2)
    half = COUNT // 2
    pairs = {
        "calls": (first, second), "neighbours": (first[1:], first[:-1]),
        "pieces": (first[PIECE:], first[: COUNT - PIECE]),
        "halves of a piece": (first[: PIECE // 2], first[PIECE // 2 : PIECE]), "halves": (first[:half], first[half:]),
    }  # fmt: skip
    for name, (a, b) in pairs.items():
        slack = limit * math.sqrt(COUNT / 2 / len(a))
        assert abs(float((a * b).mean())) < 2 * slack, name
        assert abs(float((a.square() * b.square()).mean()) - 1) < 10 * slack, name  # sin and cos share a radius


@BOTH
def test_uniform_is_uniform(source: Randomness) -> None:
    drawn = source.uniform(COUNT)
    assert drawn.dtype == np.float64
    assert stats.kstest(drawn, "uniform").pvalue > CHANCE
    assert 0 <= drawn.min() < drawn.max() < 1
    bits = (drawn * 2.0**BITS).astype(np.int64)
    assert (bits * 2.0**-BITS == drawn).all()
    for bit in range(BITS):
        low, high = stats.binom.interval(1 - CHANCE, COUNT, 0.5)
        assert low <= (bits >> bit & 1).sum() <= high


def test_tails_reach_beyond_eight_deviations() -> None:
    smallest, quarter = torch.tensor([0, 0]), (1 << BITS) // 2
    x, y = box_muller(torch.tensor([0, quarter])).tolist()
    assert x == pytest.approx(-math.sqrt(2 * BITS * math.log(2)))
    assert x < -8.5
    assert abs(y) < 1e-6
    assert box_muller(smallest).isfinite().all()
    assert box_muller(torch.tensor([(1 << BITS) - 1, 0])).tolist() == [0.0, 0.0]


@given(st.lists(st.integers(0, (1 << BITS) - 1), min_size=2, max_size=2))
def test_box_muller_is_the_formula(drawn: list[int]) -> None:
    u, v = (drawn[0] + 1) / 2**BITS, drawn[1] / 2**BITS
    r = math.sqrt(-2 * math.log(u))
    wanted = [r * math.cos(2 * math.pi * v), r * math.sin(2 * math.pi * v)]
    assert box_muller(torch.tensor(drawn)).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (PIECE + 3,)])
@BOTH
def test_shapes_and_kinds(source: Randomness, shape: tuple[int, ...]) -> None:
    assert source.normal(shape).shape == shape
    assert source.normal(shape).dtype == torch.float32
    assert source.normal(shape, torch.float64).dtype == torch.float64
    assert source.uniform(math.prod(shape)).shape == (math.prod(shape),)


def test_secure_never_comes_again_and_seeded_does() -> None:
    assert not torch.equal(Secure().at(4).normal((9,)), Secure().at(4).normal((9,)))
    assert (Secure().uniform(9) != Secure().uniform(9)).any()
    torch.manual_seed(0)
    before = Secure().normal((9,))
    torch.manual_seed(0)
    assert not torch.equal(Secure().normal((9,)), before)
    a, b = Seeded(1).at(4), Seeded(1).at(4)
    assert torch.equal(a.normal((9,)), b.normal((9,)))
    assert (a.uniform(9) == b.uniform(9)).all()
    for other in (Seeded(1).at(5), Seeded(2).at(4), Seeded(1)):
        assert not torch.equal(other.normal((9,)), Seeded(1).at(4).normal((9,)))


def test_secure_reads_the_operating_system_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With bytes that are known the numbers are the formula's of those: there is no other source, and no waste."""
    known = os.urandom(8 * 10)
    asked: list[int] = []

    def read(count: int) -> bytes:
        asked.append(count)
        return known[:count]

    monkeypatch.setattr(randomness.os, "urandom", read)
    bits = torch.from_numpy((np.frombuffer(known, np.uint64) >> np.uint64(11)).astype(np.int64))
    assert torch.equal(Secure().normal((10,), torch.float64), box_muller(bits))
    assert asked == [80]


def test_the_ledger_is_told_which() -> None:
    assert Secure().secure
    assert "operating system" in Secure().description
    assert not Seeded(0).secure
    assert "seed" in Seeded(0).description
