"""Poisson sampling by unit."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medlt.privacy.dpsgd.randomness import Secure, Seeded
from medlt.privacy.dpsgd.units import Units, chunks
from medlt.types import InputError

NAMES = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=20)


@given(NAMES, st.floats(0.01, 1), st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
def test_what_is_drawn(names: list[str], rate: float, most: int, multiplicity: int, seed: int) -> None:
    units = Units(names, rate, most, multiplicity)
    rows, groups = units.draw(Seeded(seed))
    assert rows.dtype == groups.dtype == np.int64
    assert rows.shape == groups.shape
    assert len(units) == len(set(names))
    owners = [{names[row] for row in rows[groups == group]} for group in range(groups.max(initial=-1) + 1)]
    assert all(len(owner) == 1 for owner in owners)
    assert len(set().union(*owners)) == len(owners)  # no unit is in two groups
    assert (np.diff(groups) >= 0).all()
    for group, owner in enumerate(owners):
        seen = Counter(rows[groups == group].tolist())
        assert set(seen.values()) == {multiplicity}
        assert len(seen) == min(most, names.count(next(iter(owner))))


def test_each_unit_is_in_at_the_rate_by_itself() -> None:
    rng, times, rate = Secure(), 4000, 0.2
    names = [name for i, name in enumerate("abcdefgh") for _ in range(i % 3 + 1)]
    units = Units(names, rate, max_images_per_patient=1)
    inside = np.zeros((times, len(units)))
    chosen: Counter[int] = Counter()
    for i in range(times):
        rows, _ = units.draw(rng)
        inside[i, [sorted(set(names)).index(names[row]) for row in rows]] = 1
        chosen.update(rows.tolist())
    low, high = stats.binom.interval(1 - 1e-6, times, rate)
    assert ((inside.sum(0) >= low) & (inside.sum(0) <= high)).all()
    together = inside.T @ inside
    low, high = stats.binom.interval(1 - 1e-6, times, rate**2)
    apart = together[~np.eye(len(units), dtype=bool)]
    assert ((apart >= low) & (apart <= high)).all()
    counts = np.bincount(inside.sum(1).astype(int), minlength=len(units) + 1)
    wanted = stats.binom.pmf(np.arange(len(units) + 1), len(units), rate) * times
    few = wanted < 5
    seen = np.append(counts[~few], counts[few].sum())
    assert stats.chisquare(seen, np.append(wanted[~few], wanted[few].sum())).pvalue > 1e-6
    for name in set(names):  # of a unit's rows each comes as often
        own = [chosen[row] for row, owner in enumerate(names) if owner == name]
        assert stats.chisquare(own).pvalue > 1e-6 or len(own) == 1


def test_some_of_a_units_rows_without_replacement_each_set_as_often() -> None:
    units, seen = Units(["a"] * 4, 1.0, max_images_per_patient=2), Counter()
    for _ in range(3000):
        seen[tuple(units.draw(Secure())[0].tolist())] += 1
    assert len(seen) == 6
    assert stats.chisquare(list(seen.values())).pvalue > 1e-6


def test_no_unit_may_be_drawn() -> None:
    units = Units(["a", "b"], 0.01)
    sizes = {len(units.draw(Seeded(seed))[0]) for seed in range(40)}
    assert 0 in sizes
    assert Units(["a", "b"], 1.0, noise_multiplicity=2).draw(Secure())[0].tolist() == [0, 0, 1, 1]


def test_bad_rates_and_bounds() -> None:
    with pytest.raises(InputError, match="at most the public number of units"):
        Units(["a", "b"], 1.5)
    with pytest.raises(InputError, match="batch_size of 1 or more"):
        Units(["a", "b"], 0.0)
    with pytest.raises(InputError, match="no row"):
        Units([], 0.5)
    with pytest.raises(InputError, match="1 or more"):
        Units(["a"], 0.5, max_images_per_patient=0)


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(1, 7))
def test_chunks_are_whole_groups_in_order(sizes: list[int], most: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    pieces = chunks(groups, most)
    assert [row for piece in pieces for row in range(len(groups))[piece]] == list(range(len(groups)))
    inside = [set(groups[piece].tolist()) for piece in pieces]
    assert sum(map(len, inside)) == len(sizes)
    for piece, units in zip(pieces, inside, strict=True):
        assert len(groups[piece]) <= most or len(units) == 1
    for piece, after in pairwise(pieces):  # none could have taken one more
        assert len(groups[piece]) + sizes[int(groups[after][0])] > most
