"""The tail-first table, row by row, beside the published one."""

import itertools

import pytest
import torch

from medlt.synthesis.fuse import fuse, located
from medlt.types import InputError


@pytest.mark.parametrize(("tail", "generic", "coin"), list(itertools.product([False, True], repeat=3)))
def test_tail_first_differs_from_the_published_table_in_one_case_only(tail: bool, generic: bool, coin: bool) -> None:
    a, b = torch.ones(1, 2, 3, 1, 1), torch.zeros(1, 2, 3, 1, 1)
    flags = [torch.full((1, 1, 1), flag) for flag in (tail, generic, coin)]
    expected = True if tail else (False if generic else coin)
    fused, omega = fuse(a, b, *flags, rule="tail_first")
    assert bool(omega) is expected
    assert torch.equal(fused, a if expected else b)
    published = bool(fuse(a, b, *flags, rule="published")[1])
    assert (published != expected) == (tail and generic and not coin)


@pytest.mark.parametrize(("tail", "generic", "coin"), list(itertools.product([False, True], repeat=3)))
def test_tail_only_takes_the_mask_whatever_the_head_and_the_coin(tail: bool, generic: bool, coin: bool) -> None:
    a, b = torch.ones(1, 2, 3, 1, 1), torch.zeros(1, 2, 3, 1, 1)
    flags = [torch.full((1, 1, 1), flag) for flag in (tail, generic, coin)]
    fused, omega = fuse(a, b, *flags, rule="tail_only")
    assert bool(omega) is tail
    assert torch.equal(fused, a if tail else b)


def test_the_largest_cells_are_located_by_hand() -> None:
    maps = torch.tensor([[[0.1, 0.9], [0.5, 0.0]], [[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.2], [1.0, 0.0]], [[0.0] * 2] * 2])
    top = located(maps, torch.tensor([False, False, True, False]), [0.5, 0.25, 0.0, 1.0])
    assert top.tolist() == [
        [[False, True], [True, False]],
        [[True, False], [False, False]],  # of equal cells the first
        [[False, True], [True, False]],  # a given region: all of it, whatever the area
        [[False, False], [False, False]],  # no evidence: nothing, whatever the area
    ]


def test_an_unknown_rule_is_refused() -> None:
    a, flag = torch.zeros(1, 1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.bool)
    with pytest.raises(InputError, match="tail_first"):
        fuse(a, a, flag, flag, flag, rule="head_first")
