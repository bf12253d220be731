"""Links against chance: images that lead back are counted, strangers are not, and a blind embedding says nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from medlt.privacy.audit.rates import Share
from medlt.privacy.audit.reidentify import Reidentification, Verification, _fewer, _verified, reidentify
from medlt.rng import numpy_generator
from medlt.types import InputError


def verified(recall: float) -> Verification:
    return Verification(Share(0.99, 0.98, 1.0), Share(recall, 0.0, 1.0), 0.05, 100, 100)


def people(n: int, seed: int) -> Tensor:
    """Images [n,1,4,4] that are their own feature vectors."""
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def embed(images: Tensor) -> Tensor:
    return functional.normalize(images.flatten(1))


def linked(synthetic: Tensor, train: Tensor, held: Tensor, recall: float = 0.9, seed: int = 0) -> Reidentification:
    names: dict[str, Any] = {
        "uids": [f"s{i}" for i in range(len(synthetic))],
        "train_patients": [f"t{i}" for i in range(len(train))],
        "held_out_patients": [f"h{i}" for i in range(len(held))],
    }
    return reidentify(embed, synthetic, train, held, verified(recall), seed=seed, **names)


def test_images_of_training_patients_lead_back() -> None:
    train, held = people(300, 1), people(100, 2)
    found = linked(train[:200] + 0.1 * people(200, 3), train, held)
    assert found.passed is False
    assert found.patients == 50
    assert found.linked.value > found.null.value + 0.1
    assert found.p < 1e-6
    assert found.images["similarity_train"].mean() > 0.95
    assert found.sentence.startswith("Re-identification")


def test_strangers_do_not_and_a_blind_embedding_says_nothing() -> None:
    train, held, fresh = people(300, 1), people(100, 2), people(200, 3)
    assert linked(fresh, train, held).passed is True
    blind = linked(fresh, train, held, recall=0.1)
    assert blind.passed is None
    assert blind.sentence.startswith("Cannot conclude")


def test_strangers_are_linked_at_the_stated_rate_and_rarely_accused() -> None:
    said, shares = [], []
    for seed in range(60):
        found = linked(people(100, 3 * seed), people(90, 3 * seed + 1), people(60, 3 * seed + 2), seed=seed)
        said.append(found.passed)
        shares.append(found.linked.value)
    assert said.count(False) <= 7
    assert 0.025 < np.mean(shares) < 0.075


def test_so_few_links_in_closed_form() -> None:
    """Each of n images linked to one of two sets: those linked to the held-out one are Binomial(n, 1/2)."""
    held = np.array([True] * 3 + [False] * 9)
    assert _fewer((~held).astype(int), held, 2) == pytest.approx(stats.binom.cdf(3, 12, 0.5))
    assert _fewer(np.array([3, 3]), np.array([True, True]), 4) == pytest.approx(1)
    assert _fewer(np.array([3, 3]), np.array([False, False]), 4) == pytest.approx(1 / 16)
    assert _fewer(np.zeros(5), np.zeros(5, bool), 4) == 1


def test_verification_of_an_embedding_that_knows_and_one_that_does_not() -> None:
    of = np.repeat(np.arange(60), [3] * 30 + [1] * 30)
    own = functional.normalize(people(60, 0).flatten(1))[torch.from_numpy(of)]
    same, near, _, linked_, gallery = _verified(own, of, 0.05, 0)
    assert near[same].min() > near[~same].max() - 0.05
    assert linked_.all()
    assert len(linked_) == 30
    assert gallery.tolist() == [60]
    assert same.sum() == 30 * 3
    blind = functional.normalize(people(len(of), 5).flatten(1))
    assert _verified(blind, of, 0.05, 0)[3].mean() < 0.2


def test_verification_by_hand() -> None:
    """Who is linked, by loops: one image shown of each patient, a limit that a tenth of them pass among strangers."""
    of = np.repeat(np.arange(50), [2] * 40 + [1] * 10)
    vectors = functional.normalize(people(50, 0).flatten(1)[torch.from_numpy(of)] + people(len(of), 1).flatten(1))
    near, rng = (vectors @ vectors.T).double().numpy(), numpy_generator(3, "verification queries")
    shown = [rng.choice(np.flatnonzero(of == one)) for one in range(50)]
    strangers = sorted(max(near[i, j] for j in range(len(of)) if of[j] != of[i]) for i in shown)
    limit = strangers[45]  # 4 of 50 above it: at most a tenth
    known = [max(near[i, j] for j in range(len(of)) if of[j] == of[i] and j != i) > limit for i in shown[:40]]
    assert _verified(vectors, of, 0.1, 3)[3].tolist() == known
    assert 0.1 < np.mean(known) < 0.9


def test_bad_input() -> None:
    with pytest.raises(InputError, match="7 held-out"):
        linked(people(5, 0), people(20, 1), people(7, 2))
    with pytest.raises(InputError, match="0 synthetic"):
        linked(people(5, 0)[:0], people(20, 1), people(20, 2))
    with pytest.raises(InputError, match="two images or more"):
        _verified(embed(people(5, 0)), np.arange(5), 0.05, 0)
