from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medlt import rng
from medlt.rng import batch_indices, noise_like, seed_of


@given(st.integers(1, 40), st.integers(1, 15), st.integers(0, 9))
def test_every_epoch_sees_every_row_once(n: int, size: int, seed: int) -> None:
    steps = [batch_indices(n, size, step, seed) for step in range(3 * n)]
    stream = np.concatenate(steps)
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()


def test_a_step_needs_no_step_before_it() -> None:
    forwards = [batch_indices(10, 4, step, "a") for step in range(9)]
    backwards = [batch_indices(10, 4, step, "a") for step in reversed(range(9))][::-1]
    assert all((a == b).all() for a, b in zip(forwards, backwards, strict=True))


def test_noise_depends_on_its_seed_not_its_batch() -> None:
    together = noise_like([5, 6, 7], (2, 3))
    assert torch.equal(together[1:2], noise_like([6], (2, 3)))
    assert not torch.equal(together[0], together[1])


def test_keys_do_not_run_together() -> None:
    assert seed_of("ab", "c") != seed_of("a", "bc")
    assert seed_of(1, 2) == seed_of(1, 2) < 2**63


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 12))
def test_a_step_is_its_part_of_the_stream_of_permutations(n: int, size: int, step: int) -> None:
    needed = range(((step + 1) * size - 1) // n + 1)
    stream = np.concatenate([np.random.default_rng(seed_of("k", 3, "epoch", e)).permutation(n) for e in needed])
    np.testing.assert_array_equal(batch_indices(n, size, step, "k", 3), stream[step * size : (step + 1) * size])


def test_the_steps_of_an_epoch_share_one_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = rng._order.__wrapped__

    def counted(n: int, seed: int) -> np.ndarray:
        made.append(n)
        return real(n, seed)

    monkeypatch.setattr(rng, "_order", lru_cache(8)(counted))
    for step in range(25):  # two epochs and a half
        batch_indices(1000, 100, step, "few")
    assert made == [1000] * 3
