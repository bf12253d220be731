"""Neighbours in blocks against the whole matrix, and isolation against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from medlt.metrics.nearest import isolation, nearest
from medlt.types import InputError


def vectors(n: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)))


@given(st.integers(1, 30), st.integers(2, 60), st.integers(1, 70), st.integers(1, 60))
def test_blocks_do_not_matter(queries: int, references: int, block: int, k: int) -> None:
    k = min(k, references)
    a, b = vectors(queries, 0), vectors(references, 1)
    found, whole = nearest(a, b, k, block), (a @ b.T).sort(1, descending=True)
    assert torch.allclose(found.similarity, whole.values[:, :k], atol=1e-6)
    assert torch.allclose((a @ b.T).gather(1, found.rows), found.similarity, atol=1e-6)
    assert all(len(set(row)) == k for row in found.rows.tolist())


def test_many_queries_take_fewer_references_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = vectors(40, 0), vectors(90, 1)
    whole = nearest(a, b, 7)
    monkeypatch.setattr("medlt.metrics.nearest.PAIRS", 200)
    few = nearest(a, b, 7)
    assert torch.allclose(few.similarity, whole.similarity)
    assert few.rows.equal(whole.rows)


def test_isolation_is_the_first_distance_over_the_mean_of_the_next() -> None:
    a, b = vectors(7, 0), vectors(20, 1)
    found, distance = isolation(a, b, 4), (1 - a @ b.T).sort(1)
    assert torch.allclose(found.ratio, distance.values[:, 0] / distance.values[:, 1:5].mean(1), atol=1e-5)
    assert found.row.equal(distance.indices[:, 0])
    assert isolation(b, b).ratio.abs().max() < 1e-5


def test_few_references_use_all_of_them_and_one_is_refused() -> None:
    assert isolation(vectors(3, 0), vectors(4, 1), 50).ratio.equal(isolation(vectors(3, 0), vectors(4, 1), 3).ratio)
    with pytest.raises(InputError, match="2 neighbours among 1"):
        isolation(vectors(3, 0), vectors(1, 1))
